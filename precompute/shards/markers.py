"""Markers, `train-00000.json`: which units are finished, and the manifest that they amount to.

The markers are the truth about a folder; its manifest only repeats them.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from loader.format import SHARD_NAME, Field, FormatError, Manifest, Marker, Split
from loader.recipe import Recipe
from precompute.commands import launched


def marker_paths(output: Path) -> list[Path]:
    """The markers of all finished units, in order of split and unit."""
    return sorted(path for path in output.glob("*-*.json") if is_marker(path.name))


def is_marker(name: str) -> bool:
    return name.endswith(".json") and SHARD_NAME.fullmatch(name.removesuffix(".json")) is not None


def read_marker(path: Path) -> Marker:
    """Raises FormatError, which names the file."""
    return parse_marker(path, path.read_bytes())


def parse_marker(path: Path | str, data: bytes) -> Marker:
    """The marker that a file holds. path: for the message. Raises FormatError."""
    try:
        return Marker.from_json(data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}. Remove it and run `{launched()}` again") from error


def parse_manifest(path: str, data: bytes) -> Manifest:
    """The manifest that a file holds. path: for the message. Raises FormatError."""
    try:
        return Manifest.from_json(data)
    except FormatError as error:
        raise FormatError(
            f"{path}: {error}. Remove it and run `{launched()}` again: it is made anew from the markers"
        ) from error


def manifest_of(recipe: Recipe, fields: Iterable[Field], markers: Iterable[Marker]) -> Manifest:
    """The manifest that a set of markers, all of one recipe, amounts to."""
    by_split: dict[str, list[Marker]] = {}
    for marker in markers:
        by_split.setdefault(marker.split, []).append(marker)
    splits = {}
    for name, done in by_split.items():
        done.sort(key=lambda marker: marker.unit)
        rejected: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        for marker in done:
            rejected.update(marker.rejected)
            left_out.update(marker.left_out)
            kinds.update(marker.caption_kinds)
        shards = tuple(shard for marker in done for shard in marker.shards)
        counts = (dict(sorted(by_reason.items())) for by_reason in (rejected, left_out, kinds))
        splits[name] = Split(done[0].plan, len(done), shards, *counts)
    return Manifest(recipe, tuple(fields), splits)
