"""What is on the Hub, as units: its markers and manifest at one commit, and the files that nothing lists."""

import re
from dataclasses import dataclass
from typing import TypeVar

from loader.format import MANIFEST, SHARD_NAME, FormatError, Manifest, Marker, recipe_differences
from precompute.hub.local_dataset import Finished, hub_path, manifest_of_all, unit_files
from precompute.hub.repository import Repository, Snapshot, is_same
from precompute.hub.retry import Refusal
from precompute.shards.store import IN_FOLDER

T = TypeVar("T", Manifest, Marker)


@dataclass(frozen=True)
class Published:
    """markers: by stem, of the units that are there with all their files. manifest: as it is there, whatever it lists."""

    snapshot: Snapshot
    markers: dict[str, Marker]
    manifest: Manifest | None

    def stale(self, local: Finished, markers: dict[str, Marker], manifest: Manifest) -> list[str]:
        """Files of our splits that no unit has: neither those that are there after a commit nor those still to come."""
        listed = {hub_path(m, name) for stem, m in markers.items() for name in unit_files(stem, m)}
        listed |= {local.hub_path(stem, name) for stem in local.markers for name in local.files(stem)}
        splits = "|".join(map(re.escape, manifest.splits))
        ours = re.compile(rf"({splits})-\d{{5,}}(-\d{{2,}})?\.(tar|parquet|json)")
        return [
            path
            for path in self.snapshot.files
            if _is_place(path) and ours.fullmatch(path.rpartition("/")[2]) and path not in listed
        ]


def _is_place(path: str) -> bool:
    """Whether readers of the format look for files there: beside the manifest, or in a folder of units."""
    return "/" not in path or IN_FOLDER.fullmatch(path) is not None


def read_published(repository: Repository, local: Finished) -> Published:
    """What is there now. Markers that are here too are not fetched. Raises Refusal where it is of another recipe or plan."""
    snapshot = repository.snapshot()
    text = repository.read(snapshot, MANIFEST)
    manifest = _parse(repository, MANIFEST, text, Manifest) if text else None
    if manifest is not None and local.markers:
        _compare(repository, manifest, manifest_of_all(local.markers))
    markers, unknown = dict[str, Marker](), dict[str, str]()
    places = {
        path: path.rpartition("/")[2].removesuffix(".json")
        for path in snapshot.files
        if path.endswith(".json")
    }
    places = {path: stem for path, stem in places.items() if _is_place(path) and SHARD_NAME.fullmatch(stem)}
    for (path, stem), here in zip(places.items(), local.marker_bytes(places.values()), strict=True):
        if here is not None and is_same(snapshot.files[path], here):
            markers[path] = _parse(repository, path, here, Marker)
        else:
            unknown[path] = stem
    for path, data in repository.read_many(snapshot, unknown).items():
        markers[path] = _parse(repository, path, data, Marker)
    whole = {
        path.rpartition("/")[2].removesuffix(".json"): marker
        for path, marker in sorted(markers.items())
        if _is_whole(path, marker, snapshot)
    }
    if whole and local.markers:
        _compare(repository, manifest_of_all(whole), manifest_of_all(local.markers))
    return Published(snapshot, whole, manifest)


def _is_whole(path: str, marker: Marker, snapshot: Snapshot) -> bool:
    """Whether every file of a unit lies where it belongs, with the hash that its marker has."""
    stem = path.rpartition("/")[2].removesuffix(".json")
    for name, sha256 in unit_files(stem, marker).items():
        there = snapshot.files.get(hub_path(marker, name))
        if there is None or (sha256 is not None and there.lfs is not None and there.lfs.sha256 != sha256):
            return False
    return stem == f"{marker.split}-{marker.unit:05d}" and path == hub_path(marker, f"{stem}.json")


def _compare(repository: Repository, theirs: Manifest, ours: Manifest) -> None:
    wrong = recipe_differences(theirs.recipe, ours.recipe)
    for name in theirs.splits.keys() & ours.splits.keys():
        wrong += recipe_differences(theirs.splits[name].plan, ours.splits[name].plan, "plan")
    if wrong:
        lines = "\n  ".join(wrong)
        raise Refusal(
            f"{repository.name}: it holds shards of another recipe:\n  {lines}\nName another dataset or --revision"
        )


def _parse(repository: Repository, path: str, data: bytes, kind: type[T]) -> T:
    try:
        return kind.from_json(data)
    except FormatError as error:
        raise Refusal(
            f"{repository.name}: {path} there cannot be read ({error}). Remove it there, and run the same command again"
        ) from error
