"""What is finished in an output folder, as units that can be pushed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loader.format import MANIFEST, Manifest, Marker, recipe_differences
from precompute.errors import UsageError
from precompute.hub.retry import PushError
from precompute.shards.markers import manifest_of, marker_paths, read_marker
from precompute.shards.missing_ok import may_be_gone
from precompute.shards.store import hub_folder

COMMIT_BYTES, COMMIT_FILES = 50 * 10**9, 2000  # of one commit; the Hub takes up to 25,000 files


@dataclass(frozen=True)
class Finished:
    """The output folder. markers: by stem, of finished units. manifest: of all that is planned; None before the first."""

    folder: Path
    markers: dict[str, Marker]
    manifest: Manifest | None

    @classmethod
    def read(cls, folder: Path) -> "Finished":
        """Raises UsageError or FormatError where it is no folder of shards."""
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder. Name the --output of precompute/run.py")
        path = folder / MANIFEST
        manifest = Manifest.from_json(path.read_bytes()) if path.exists() else None
        return cls(folder, {path.stem: read_marker(path) for path in marker_paths(folder)}, manifest)

    @property
    def complete(self) -> bool:
        """Whether every unit of every planned split is finished."""
        if self.manifest is None or not self.markers:
            return False
        done = [marker.split for marker in self.markers.values()]
        return all(done.count(name) >= split.plan["units"] for name, split in self.manifest.splits.items())

    def is_current(self, stem: str) -> bool:
        """Whether the unit's marker still is what was read: it goes first where a unit is done again."""
        now = None
        with may_be_gone():
            now = read_marker(self.folder / f"{stem}.json")
        return now == self.markers[stem]

    def files(self, stem: str) -> dict[str, str | None]:
        """File -> sha256 of one unit; None for the marker, which is small and compared as it is."""
        shards = self.markers[stem].shards
        tars = {f"{shard.name}.tar": shard.sha256 for shard in shards if shard.samples}
        return {
            **tars,
            **{f"{shard.name}.parquet": shard.parquet_sha256 for shard in shards},
            f"{stem}.json": None,
        }

    def hub_path(self, stem: str, name: str) -> str:
        """Where a file of a unit lies on the Hub."""
        return f"{hub_folder(self.markers[stem])}/{name}".removeprefix("/")

    def size(self, stem: str) -> int:
        return sum(shard.bytes for shard in self.markers[stem].shards)

    def batches(self, stems: list[str]) -> Iterator[list[str]]:
        """Units in order, as many as one commit should hold."""
        batch, size, count = list[str](), 0, 0
        for stem in stems:
            files = len(self.files(stem))
            if batch and (count + files > COMMIT_FILES or size + self.size(stem) > COMMIT_BYTES):
                yield batch
                batch, size, count = [], 0, 0
            batch.append(stem)
            size += self.size(stem)
            count += files
        if batch:
            yield batch


def manifest_of_all(markers: dict[str, Marker]) -> Manifest:
    """The manifest of markers that share a recipe, as it is on the Hub."""
    first = next(iter(markers.values()))
    for stem, marker in markers.items():
        wrong = recipe_differences(first.recipe, marker.recipe)
        if wrong:
            raise PushError(f"{stem}.json: made by another recipe ({wrong[0]}). Keep one recipe in a folder")
    return manifest_of(first.recipe, first.fields, map(_on_hub, markers.values()))


def _on_hub(marker: Marker) -> Marker:
    folder = hub_folder(marker)
    return replace(marker, shards=tuple(replace(shard, folder=folder) for shard in marker.shards))
