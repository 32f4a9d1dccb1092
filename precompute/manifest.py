"""`manifest.json`: written before the first unit, kept up to date from the markers, the same from whichever process.

It also guards the folder: markers or a manifest of another recipe or plan stop the run before any work.
"""

import time
from pathlib import Path
from typing import Any

from loader.format import MANIFEST, Field, FormatError, Manifest, Marker, Split, recipe_differences
from precompute.errors import RecipeMismatch
from precompute.shards import manifest_of, marker_paths, read_marker, write_shared

INTERVAL = 30.0  # seconds between updates while units finish


class ManifestKeeper:
    """The manifest of one output folder, as one process sees it. Not for use from two threads at once."""

    def __init__(
        self, output: Path, split: str, recipe: dict[str, Any], fields: list[Field], plan: dict[str, Any]
    ) -> None:
        self._output, self._split, self._recipe, self._fields, self._plan = (
            output,
            split,
            recipe,
            fields,
            plan,
        )
        self._markers: dict[str, Marker] = {}
        self._updated = 0.0

    def start(self) -> Manifest:
        """Write the first manifest, or hold the one that is there against ours. Raises RecipeMismatch."""
        path = self._output / MANIFEST
        if path.exists():
            try:
                manifest = Manifest.from_json(path.read_bytes())
            except FormatError as error:
                raise FormatError(f"{path}: {error}. Remove it: it is made anew from the markers") from error
            self._compare(manifest.recipe, manifest.splits.get(self._split))
        return self.refresh(force=True)

    def refresh(self, force: bool = False) -> Manifest:
        """Rewrite the manifest from all markers; at most every INTERVAL seconds unless forced.

        Two processes may do so at once: whoever finds a marker that its own version lacks writes again.
        """
        if not force and time.monotonic() - self._updated < INTERVAL:
            return self.manifest()
        self._updated = time.monotonic()
        while True:
            names = self._read_markers()
            manifest = self.manifest()
            write_shared(self._output, MANIFEST, manifest.to_json().encode())
            if names == {path.name for path in marker_paths(self._output)}:
                return manifest

    def manifest(self) -> Manifest:
        manifest = manifest_of(self._recipe, self._fields, self._markers.values())
        manifest.splits.setdefault(self._split, Split(self._plan, 0, (), {}))
        return manifest

    def samples_since(self, units: set[int]) -> int:
        """Samples of this split's finished units, those in `units` aside."""
        mine = [m for m in self._markers.values() if m.split == self._split and m.unit not in units]
        return sum(marker.samples for marker in mine)

    def _read_markers(self) -> set[str]:
        paths = marker_paths(self._output)
        for path in paths:
            if path.name not in self._markers:
                marker = read_marker(path)
                plan = Split(marker.plan, 0, (), {}) if marker.split == self._split else None
                self._compare(marker.recipe, plan)
                self._markers[path.name] = marker
        names = {path.name for path in paths}
        self._markers = {name: marker for name, marker in self._markers.items() if name in names}
        return names

    def _compare(self, recipe: dict[str, Any], split: Split | None) -> None:
        different = recipe_differences(recipe, self._recipe)
        if split is not None:
            different += recipe_differences(split.plan, self._plan, "plan")
        if different:
            lines = "\n  ".join(different)
            raise RecipeMismatch(
                f"--output {self._output}: it holds shards of another recipe:\n  {lines}\n"
                "Use the same flags as then, or another folder"
            )
