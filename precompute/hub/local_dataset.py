"""What is finished in an output folder or store, as units that can be pushed."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

from loader.format import MANIFEST, Manifest, Marker, recipe_differences
from precompute.hub.retry import PushError
from precompute.shards.destination import Destination
from precompute.shards.markers import is_marker, manifest_of, parse_manifest, parse_marker
from precompute.shards.store import hub_folder

COMMIT_BYTES = 50 * 10**9  # of one commit
STAGED_BYTES = 5 * 10**9  # of one out of a store, whose files come to a disk here first


@dataclass(frozen=True)
class Finished:
    """What a run has finished. output: where; markers: by stem, of finished units. manifest: of all that is planned; None
    before the first. read_as: markers by file, with the version that each had."""

    output: Destination
    markers: dict[str, Marker]
    manifest: Manifest | None
    read_as: dict[str, tuple[Hashable, Marker]]

    @classmethod
    def read(cls, output: Destination, before: "Finished | None" = None) -> "Finished":
        """before: what was read last; of its units markers are read again where they changed. Raises FormatError."""
        there = output.get(MANIFEST)
        manifest = parse_manifest(f"{output}/{MANIFEST}", there) if there is not None else None
        versions = {name: entry.version for name, entry in sorted(output.files(is_marker).items())}
        known = (
            {name: data for name, data in before.read_as.items() if versions.get(name) == data[0]}
            if before
            else {}
        )
        new = [name for name in versions if name not in known]
        for name, data in zip(new, output.get_many(new), strict=True):
            if data is not None:
                known[name] = versions[name], parse_marker(f"{output}/{name}", data)
        read_as = {name: known[name] for name in versions if name in known}
        markers = {name.removesuffix(".json"): marker for name, (_, marker) in read_as.items()}
        return cls(output, markers, manifest, read_as)

    @property
    def complete(self) -> bool:
        """Whether every unit of every planned split is finished."""
        if self.manifest is None or not self.markers:
            return False
        done = [marker.split for marker in self.markers.values()]
        return all(done.count(name) >= split.plan["units"] for name, split in self.manifest.splits.items())

    def is_current(self, stem: str) -> bool:
        """Whether the unit's marker still is what was read: it goes first where a unit is done again."""
        data = self.output.get(f"{stem}.json")
        return data is not None and parse_marker(f"{self.output}/{stem}.json", data) == self.markers[stem]

    def marker_bytes(self, stems: Iterable[str]) -> Iterator[bytes | None]:
        """The files of markers as they are now; None where there is none, as while a unit is done again."""
        stems = list(stems)
        known = [stem for stem in stems if stem in self.markers]
        found = dict(zip(known, self.output.get_many([f"{stem}.json" for stem in known]), strict=True))
        return map(found.get, stems)

    def files(self, stem: str) -> dict[str, str | None]:
        """File -> sha256 of one unit; None for the marker, which is small and compared as it is."""
        return unit_files(stem, self.markers[stem])

    def hub_path(self, stem: str, name: str) -> str:
        """Say where a file of a unit lies on the Hub."""
        return hub_path(self.markers[stem], name)

    def without_tars(self) -> dict[str, Marker]:
        """Units whose tars are gone, as they are once the Hub has them."""
        there = self.output.files(lambda name: name.endswith(".tar")).keys()
        return {
            stem: marker
            for stem, marker in self.markers.items()
            if there.isdisjoint(unit_files(stem, marker))
        }

    def size(self, stem: str) -> int:
        return sum(shard.bytes for shard in self.markers[stem].shards)

    def batch(self, stems: list[str], most_files: int) -> list[str]:
        """The first of these units: as many as one commit should hold, and one at least."""
        batch, size, count = list[str](), 0, 0
        for stem in stems:
            size += self.size(stem)
            count += len(self.files(stem))
            if batch and (
                count > most_files or size > (STAGED_BYTES if self.output.behind else COMMIT_BYTES)
            ):
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
            raise PushError(
                f"{stem}.json: made by another recipe ({wrong[0]}). Keep shards of one recipe in a place"
            )
    return manifest_of(first.recipe, first.fields, map(_on_hub, markers.values()))


def _on_hub(marker: Marker) -> Marker:
    folder = hub_folder(marker)
    return replace(marker, shards=tuple(replace(shard, folder=folder) for shard in marker.shards))
