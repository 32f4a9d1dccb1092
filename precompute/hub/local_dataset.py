"""What is finished in an output folder, as units that can be pushed."""

from dataclasses import dataclass, replace
from pathlib import Path

from loader.format import MANIFEST, Manifest, Marker, recipe_differences
from precompute.errors import UsageError
from precompute.hub.retry import PushError
from precompute.shards.markers import manifest_of, marker_paths, read_marker
from precompute.shards.missing_ok import may_be_gone
from precompute.shards.store import hub_folder

COMMIT_BYTES = 50 * 10**9  # of one commit


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
            raise UsageError(f"{folder}: no such folder. Name the --output folder of a run")
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

    def marker_bytes(self, stem: str) -> bytes | None:
        """The marker's file as it is now; None where there is none, as while a unit is done again."""
        data = None
        if stem in self.markers:
            with may_be_gone():
                data = (self.folder / f"{stem}.json").read_bytes()
        return data

    def files(self, stem: str) -> dict[str, str | None]:
        """File -> sha256 of one unit; None for the marker, which is small and compared as it is."""
        return unit_files(stem, self.markers[stem])

    def hub_path(self, stem: str, name: str) -> str:
        """Say where a file of a unit lies on the Hub."""
        return hub_path(self.markers[stem], name)

    def size(self, stem: str) -> int:
        return sum(shard.bytes for shard in self.markers[stem].shards)

    def batch(self, stems: list[str], most_files: int) -> list[str]:
        """The first of these units: as many as one commit should hold, and one at least."""
        batch, size, count = list[str](), 0, 0
        for stem in stems:
            size += self.size(stem)
            count += len(self.files(stem))
            if batch and (count > most_files or size > COMMIT_BYTES):
                break
            batch.append(stem)
        return batch


def unit_files(stem: str, marker: Marker) -> dict[str, str | None]:
    """File -> sha256 of the unit that a marker lists; None for the marker itself."""
    tars = {f"{shard.name}.tar": shard.sha256 for shard in marker.shards if shard.samples}
    sidecars = {f"{shard.name}.parquet": shard.parquet_sha256 for shard in marker.shards}
    return {**tars, **sidecars, f"{stem}.json": None}


def hub_path(marker: Marker, name: str) -> str:
    """Say where a file of a unit lies on the Hub."""
    return f"{hub_folder(marker)}/{name}".removeprefix("/")


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
