"""The files of `--captions`, joined on disk where no builder does it: for datasets of others, and beside finished shards."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from builders.core import annotation_db, joined_captions
from builders.core.errors import BuilderError
from builders.core.joined_captions import JoinedCaptions, check_files, hash_files, open_captions
from precompute.errors import UsageError
from precompute.input.options import captions_options
from precompute.input.row_values import short_hash

JOINED = "captions_from_files"  # in a recipe


class CaptionFiles:
    """The files that `--captions` names, one after another. sha256: of each by its NAME.

    own_kinds: of the captions that there are already. Raises UsageError.
    """

    def __init__(self, captions: Sequence[str], order: str, own_kinds: Collection[str]) -> None:
        files = captions_options(captions, order).get("captions_from", {})
        self.order = order
        self.sha256: dict[str, str] = {}
        self.joined: list[JoinedCaptions] = []
        try:
            for kind in (own_kinds or ("",)) if files else ():
                check_files(files, kind)
            self.sha256 = hash_files(files, None)
            folder = os.path.join(datasets.config.HF_DATASETS_CACHE, "builders_joins")
            self.joined = [
                open_captions(name, file, self.sha256[name], folder, _code(), None, True)
                for name, file in files.items()
            ]
        except BuilderError as error:
            raise UsageError(f"--captions: {str(error).removeprefix('captions_from: ')}") from error

    def __iter__(self) -> Iterator[JoinedCaptions]:
        return iter(self.joined)

    def __bool__(self) -> bool:
        return bool(self.joined)

    @property
    def recipe(self) -> dict[str, Any]:
        """What the recipe of the dataset says of them: the files by their contents, and whether they come first."""
        return {JOINED: {"order": self.order, "sha256": self.sha256}} if self else {}

    def find(self, key: str, source: str, extras: Mapping[str, Any]) -> dict[str, list[object]]:
        """The captions of a row by the NAME of their file, of those that have any."""
        found = {file.name: file.find(key, source, extras) for file in self.joined}
        return {name: row[1] for name, row in found.items() if row is not None}


def _code() -> str:
    """Changes with the code that joins."""
    names = [module.__file__ for module in (annotation_db, joined_captions)]
    return short_hash("".join(Path(name).read_text(encoding="utf-8") for name in names if name))
