"""One tar and its sidecar as markers and manifests list them.

A manifest lists 100,000 of them and may be a stranger's, so that each rule is asked of all shards at once, and one by one only to name
the shard that breaks it.
"""

import operator
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import chain
from typing import Any

from loader import border
from loader.border import FormatError
from loader.printable import printable

SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*-[0-9]{5,}(-[0-9]{2,})?")
FOLDER = re.compile(r"([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+|")
SHA256 = re.compile(r"[0-9a-f]{64}")
BUCKET = re.compile(r"([0-9]{1,6}x[0-9]{1,6}(\+[0-9]{1,6}x[0-9]{1,6}){0,9})?")
LONGEST_NAME = 200
LARGEST_SHARD = 1 << 48
MOST_SHARDS = 10_000_000


@dataclass(frozen=True)
class Shard:
    """One tar and its sidecar, `{name}.tar` and `{name}.parquet`. With no samples there is no tar, and no sha256.

    bucket: of aspect-ratio buckets the one that all samples are of, `1024x768` (width, height in pixels; one pair for each
        resolution, joined by `+`); else empty.
    folder: where both lie, below that of the manifest; empty: beside it. It is a matter of place: equal shards may lie in
        different ones.
    """

    name: str
    samples: int
    rows: int
    bytes: int
    sha256: str
    parquet_sha256: str
    bucket: str = ""
    folder: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        _check_each([self])

    @property
    def path(self) -> str:
        """The path of both files from the manifest's folder, without their suffix."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


KNOWN = {one.name for one in fields(Shard)}
NEEDED = {one.name for one in fields(Shard) if one.default is MISSING}


def parse_shards(value: Any, place: str) -> tuple[Shard, ...]:
    """The shards of a marker or split. Raises FormatError, which names the first that is none."""
    listed = border.sequence(value, f"{place}: shards", MOST_SHARDS)
    for one in listed:
        if not (isinstance(one, dict) and one.keys() >= NEEDED):
            missing = NEEDED - border.mapping(one, f"{place}: shard").keys()
            raise FormatError(f"{place}: not a shard: it has no {min(missing)!r}")
    if unknown := set(chain.from_iterable(listed)) - KNOWN:
        raise FormatError(f"{place}: not a shard: it has {printable(min(unknown))!r}")
    shards = tuple(map(_unchecked, listed))
    _check_each(shards)
    _check(shards, "bucket", _like(BUCKET), "is not like '1024x768'")
    _check(shards, "parquet_sha256", all, "is not 64 hexadecimal digits")
    _check([shard for shard in shards if shard.samples], "sha256", all, "is not 64 hexadecimal digits")
    for shard in shards:
        if shard.samples > shard.rows:
            raise FormatError(f"shard {shard.name}: {shard.samples} samples of {shard.rows} rows")
    if len({shard.name for shard in shards}) != len(shards):
        raise FormatError(f"{place}: two shards of the same name")
    return shards


def _unchecked(values: dict[str, Any]) -> Shard:
    """A shard made as `pickle` makes one, which takes a fifth of the time."""
    shard = object.__new__(Shard)
    shard.__dict__.update(values)
    return shard


def _check_each(shards: Sequence[Shard]) -> None:
    """What holds for a shard that is not finished, too. Hashes become the names of files in the loader's cache."""
    _check(shards, "name", _like(SHARD_NAME, LONGEST_NAME), "is not like 'train-00000' or 'train-00000-01'")
    _check(shards, "folder", _like(FOLDER, LONGEST_NAME), "is not like 'train/0000'")
    for name in ("samples", "rows", "bytes"):
        _check(shards, name, _are_counts, f"is not a whole number from 0 to {LARGEST_SHARD}")
    for name in ("sha256", "parquet_sha256"):
        _check(shards, name, _are_hashes, "is not 64 hexadecimal digits")


def _check(
    shards: Sequence[Shard], name: str, hold: Callable[[Collection[Any]], bool], expected: str
) -> None:
    """Raises FormatError unless the rule holds for what all shards have under that name."""
    get = operator.attrgetter(name)
    if hold(list(map(get, shards))):
        return
    shard = next(shard for shard in shards if not hold([get(shard)]))
    place = "shard" if name == "name" else f"shard {shard.name}:"
    raise FormatError(f"{place} {name} {border.shown(get(shard))} {expected}")


def _like(pattern: re.Pattern[str], longest: int = 100) -> Callable[[Collection[Any]], bool]:
    """The rule that all are text of the pattern, of which no value is longer."""

    def hold(values: Collection[Any]) -> bool:
        if not set(map(type, values)) <= {str}:
            return False
        different = set(values)
        return max(map(len, different), default=0) <= longest and all(map(pattern.fullmatch, different))

    return hold


def _are_hashes(values: Collection[Any]) -> bool:
    """Whether each is one, or empty."""
    return _like(SHA256)([value for value in values if value != ""])


def _are_counts(values: Collection[Any]) -> bool:
    return (
        set(map(type, values)) <= {int}
        and 0 <= min(values, default=0) <= max(values, default=0) <= LARGEST_SHARD
    )
