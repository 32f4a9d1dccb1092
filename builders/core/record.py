"""A row on its way out of an archive: as its dataset finds it, and once it has been judged.

`precompute` carries the judged one on: to its picture, and to its arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Self

# Columns of every dataset; those behind them are its own.
COLUMNS = ("key", "image", "caption", "captions", "caption_kinds", "width", "height", "source")


class SourceRow(NamedTuple):
    """One source row as a dataset finds it, before cleaning and gate. None means: not there."""

    key: str
    image: bytes | None
    captions: Sequence[object] | None
    source: str
    extras: Mapping[str, Any] = MappingProxyType({})
    reject: str | None = None
    kinds: Sequence[str] | None = None  # of each caption; None: the dataset's own kind


# Not frozen, which would triple the time to make one; there are millions.
@dataclass
class Record:
    """One source row, judged. What is not known of a rejected one is None or empty. Who knows more makes another with `replace`.

    caption: cleaned, the first of `captions`; caption_kinds: of each where it is from. image: encoded bytes. width, height: pixels as
    a viewer sees it. extras: further columns by name. reject: out of account.REASONS, None for a row to use. shard: of a row that
    stands in finished shards already, the name of its own. share: how much of its unit was read with it, from 0 to 1, where known.
    """

    key: str
    caption: str | None = None
    image: bytes | None = None
    source: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)
    captions: Sequence[str] = ()
    caption_kinds: Sequence[str] = ()
    width: int | None = None
    height: int | None = None
    reject: str | None = None
    shard: str | None = None
    share: float | None = field(default=None, compare=False)

    def columns(self) -> dict[str, Any]:
        """The columns of every dataset by name."""
        # No path: datasets drops the bytes where a file of that name exists.
        image = None if self.image is None else {"bytes": self.image, "path": None}
        return {
            "key": self.key,
            "image": image,
            "caption": self.caption,
            "captions": self.captions or None,
            "caption_kinds": self.caption_kinds or None,
            "width": self.width,
            "height": self.height,
            "source": self.source,
        }

    @classmethod
    def of_columns(cls, values: Mapping[str, Any], image: bytes | None, extras: Mapping[str, Any]) -> Self:
        """What `columns` gave, and `reject` where there is such a column, read back out of a dataset."""
        known = {
            name: values[name]
            for name in (*COLUMNS, "reject")
            if name != "image" and values.get(name) is not None
        }
        return cls(**known, image=image, extras=extras)
