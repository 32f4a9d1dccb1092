"""One tar and its sidecar as markers and manifests list them.

A manifest lists 100,000 of them and may be a stranger's, so that each rule is asked of all shards at once, and one by one only to name
the shard that breaks it.
"""

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from loader import border
from loader.border import FormatError

SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*-[0-9]{5,}(-[0-9]{2,})?")
SHA256 = re.compile(r"[0-9a-f]{64}")
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
        _check([self], RULES)

    @property
    def path(self) -> str:
        """The path of both files from the manifest's folder, without their suffix."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


def parse_shards(value: Any, place: str, least: int) -> tuple[Shard, ...]:
    """The shards of a marker or split, of which a sample has `least` bytes. Raises FormatError, which names the first that is none."""
    listed = border.sequence(value, f"{place}: shards", MOST_SHARDS)
    for one in listed if set(map(type, listed)) - {dict} else ():
        border.mapping(one, f"{place}: shard")
    for names in set(map(frozenset, listed)):
        if missing := NEEDED - names:
            raise FormatError(f"{place}: not a shard: it has no {min(missing)!r}")
        if unknown := names - KNOWN:
            raise FormatError(f"{place}: not a shard: it has {border.shown(min(unknown))}")
    shards = tuple(map(_unchecked, listed))
    _check(shards, FINISHED)
    for shard in shards:
        if shard.samples > shard.rows:
            raise FormatError(f"shard {shard.name}: {shard.samples} samples of {shard.rows} rows")
        if shard.samples and not shard.sha256:
            raise FormatError(f"shard {shard.name}: sha256 '' is not 64 hexadecimal digits")
        if shard.samples * least > shard.bytes:
            raise FormatError(
                f"shard {shard.name}: {shard.samples} samples of at least {least} bytes do not fit in {shard.bytes}"
            )
    if len({shard.name for shard in shards}) != len(shards):
        raise FormatError(f"{place}: two shards of the same name")
    return shards


def _unchecked(values: dict[str, Any]) -> Shard:
    """A shard made of what JSON gave, as `pickle` makes one, which takes a tenth of the time."""
    shard = object.__new__(Shard)
    object.__setattr__(shard, "__dict__", values)
    return shard


def _check(shards: Sequence[Shard], rules: Mapping[str, "Rule"]) -> None:
    """Raises FormatError unless each rule holds for what all shards have under its name."""
    for name, (hold, expected) in rules.items():
        get = operator.attrgetter(name)
        if not hold(list(map(get, shards))):
            shard = next(shard for shard in shards if not hold([get(shard)]))
            place = "shard" if name == "name" else f"shard {shard.name}:"
            raise FormatError(f"{place} {name} {border.shown(get(shard))} is not {expected}")


def _like(pattern: str, longest: int = 100) -> Callable[[Collection[Any]], bool]:
    """The rule that all are text of the pattern, of which no value is longer."""
    matches = re.compile(pattern).fullmatch

    def hold(values: Collection[Any]) -> bool:
        if not set(map(type, values)) <= {str}:
            return False
        different = set(values)
        return max(map(len, different), default=0) <= longest and all(map(matches, different))

    return hold


def _are_counts(values: Collection[Any]) -> bool:
    return (
        set(map(type, values)) <= {int}
        and 0 <= min(values, default=0) <= max(values, default=0) <= LARGEST_SHARD
    )


KNOWN = {one.name for one in fields(Shard)}
NEEDED = {one.name for one in fields(Shard) if one.default is MISSING}
Rule = tuple[Callable[[Collection[Any]], bool], str]
COUNT: Rule = _are_counts, f"a whole number from 0 to {LARGEST_SHARD}"
# Hashes become the names of files in the loader's cache.
HASH = "64 hexadecimal digits"
RULES: dict[str, Rule] = {
    "name": (_like(SHARD_NAME.pattern, LONGEST_NAME), "like 'train-00000' or 'train-00000-01'"),
    "folder": (_like(r"([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+|", LONGEST_NAME), "like 'train/0000'"),
    **dict.fromkeys(("samples", "rows", "bytes"), COUNT),
    **dict.fromkeys(("sha256", "parquet_sha256"), (_like(f"({SHA256.pattern})?"), HASH)),
}
FINISHED = {
    **RULES,
    "parquet_sha256": (_like(SHA256.pattern), HASH),
    "bucket": (_like(r"([0-9]{1,6}x[0-9]{1,6}(\+[0-9]{1,6}x[0-9]{1,6}){0,9})?", 140), "like '1024x768'"),
}
