"""`manifest.json`: written before the first unit, kept up to date from the markers, the same from whichever process.

It also guards the folder: markers or a manifest of another recipe or plan stop the run before any work.
"""

import contextlib
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

import psutil

from loader.format import MANIFEST, Field, FormatError, Manifest, Marker, Split, recipe_differences
from precompute.errors import RecipeMismatch
from precompute.shards import manifest_of, marker_paths, read_marker, write_shared

INTERVAL = 30.0  # seconds between updates while units finish, by whichever process
SHARE = 0.01  # of a process's time may go into them: ten thousand markers take a second


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
        self._markers: dict[tuple[str, int], Marker] = {}  # by file and time: a unit may be done again
        self._due, self._seen = 0.0, 0

    def start(self) -> Manifest:
        """Write the first manifest, or hold the one that is there against ours. Raises RecipeMismatch."""
        path = self._output / MANIFEST
        if path.exists():
            try:
                manifest = Manifest.from_json(path.read_bytes())
            except FormatError as error:
                raise FormatError(f"{path}: {error}. Remove it: it is made anew from the markers") from error
            self._compare(manifest.recipe, manifest.splits.get(self._split))
        return self.refresh()

    def refresh(self) -> Manifest:
        """Rewrite the manifest from all markers.

        Two processes may do so at once: whoever finds a marker that its own version lacks writes again.
        """
        started = time.monotonic()
        while True:
            self._read_markers()
            manifest = self.manifest()
            write_shared(self._output, MANIFEST, manifest.to_json().encode())
            if self._markers.keys() == self._look().keys():
                break
        self._wait_from(started)
        return manifest

    def keep_fresh(self) -> None:
        """`refresh`, where no process has done so for INTERVAL seconds."""
        if time.monotonic() < self._due:
            return
        if self._seen == self._modified():
            self.refresh()
        else:
            self._wait_from(time.monotonic())

    def _wait_from(self, started: float) -> None:
        now = time.monotonic()
        self._due, self._seen = now + max(INTERVAL, (now - started) / SHARE), self._modified()

    def _modified(self) -> int:
        """When any process last wrote the manifest, by the clock of its disk."""
        try:
            return (self._output / MANIFEST).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def reopen(self, reasons: Container[str]) -> int:
        """Take away the markers of units with rows rejected for one of `reasons`, so that they are done again; how many.

        Only of those finished before this process began: others of the same launch may have been quicker.
        """
        began = psutil.Process().create_time()
        count = 0
        for (name, modified), marker in list(self._markers.items()):
            if (
                marker.split == self._split
                and modified < began * 1e9
                and any(r in reasons for r in marker.rejected)
            ):
                (self._output / name).unlink(missing_ok=True)
                count += 1
        if count:
            self.refresh()
        return count

    @property
    def largest_unit(self) -> int:
        """Bytes of its tars."""
        return max((sum(shard.bytes for shard in m.shards) for m in self._markers.values()), default=0)

    def manifest(self) -> Manifest:
        manifest = manifest_of(self._recipe, self._fields, self._markers.values())
        manifest.splits.setdefault(self._split, Split(self._plan, 0, (), {}))
        return manifest

    def samples_since(self, units: set[int]) -> int | None:
        """Samples of this split's finished units, those in `units` aside; None where there are no others."""
        mine = [m for m in self._markers.values() if m.split == self._split and m.unit not in units]
        return sum(marker.samples for marker in mine) if mine else None

    def _look(self) -> dict[tuple[str, int], Path]:
        found = {}
        for path in marker_paths(self._output):
            with contextlib.suppress(FileNotFoundError):  # another process does it again
                found[path.name, path.stat().st_mtime_ns] = path
        return found

    def _read_markers(self) -> None:
        found = self._look()
        self._markers = {key: marker for key, marker in self._markers.items() if key in found}
        for key, path in found.items():
            if key not in self._markers:
                with contextlib.suppress(FileNotFoundError):
                    marker = read_marker(path)
                    plan = Split(marker.plan, 0, (), {}) if marker.split == self._split else None
                    self._compare(marker.recipe, plan)
                    self._markers[key] = marker

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
