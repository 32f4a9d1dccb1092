"""`manifest.json`: written before the first unit, kept up to date from the markers, the same from whichever process.

It also guards the folder: markers or a manifest of another recipe or plan stop the run before any work.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from loader.format import MANIFEST, Field, FormatError, Manifest, Marker, Split, recipe_differences
from precompute.errors import RecipeMismatch
from precompute.shards.missing_ok import is_gone, may_be_gone
from precompute.shards.retry import end_retry, retry_began
from precompute.shards.unit_writer import is_marker, manifest_of, read_marker, write_shared

INTERVAL = 30.0  # seconds between updates while units finish, by whichever process
ROUNDS = 5  # of reading and writing at the end of a run, at most, while others of another split go on
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
        return self._update()

    def refresh(self) -> Manifest:
        """The manifest that this process leaves at its end, of all markers.

        Two processes may write theirs at once: whoever finds a marker that its own version lacks writes again. Where
        markers keep coming, so does a process that writes them at its own end.
        """
        found = self._look()
        for _ in range(ROUNDS):
            manifest, before = self._write(found), found
            found = self._look()
            if found.keys() == before.keys():
                break
        if manifest.splits[self._split].complete:
            end_retry(self._output, self._split)
        return manifest

    def keep_fresh(self) -> None:
        """Rewrite the manifest from the markers that are there now, where no process has done so for INTERVAL seconds."""
        if time.monotonic() < self._due:
            return
        if self._seen == self._modified():
            self._update()
        else:
            self._wait_from(time.monotonic())

    def _update(self) -> Manifest:
        started = time.monotonic()
        manifest = self._write(self._look())
        self._wait_from(started)
        return manifest

    def _wait_from(self, started: float) -> None:
        now = time.monotonic()
        self._due, self._seen = now + max(INTERVAL, (now - started) / SHARE), self._modified()

    def _modified(self) -> int:
        """When any process last wrote the manifest, by the clock of its disk."""
        try:
            return (self._output / MANIFEST).stat().st_mtime_ns
        except OSError as error:
            if not is_gone(error):
                raise
            return 0

    def reopen(self, reasons: Iterable[str]) -> int:
        """Take away the markers of units with rows rejected for one of `reasons`, so that they are done again; how many.

        Only of those finished before the retry began, be it another process that began it.
        """
        began = {reason: retry_began(self._output, self._split, reason) for reason in reasons}
        count = 0
        for (name, _), marker in list(self._markers.items()):
            path, since = self._output / name, max((began.get(r, 0) for r in marker.rejected), default=0)
            with may_be_gone():  # another process was quicker
                if marker.split == self._split and path.stat().st_mtime_ns < since:
                    path.unlink()
                    count += 1
        if count:
            self._update()
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

    def _write(self, found: dict[tuple[str, int], Path]) -> Manifest:
        self._read(found)
        manifest = self.manifest()
        write_shared(self._output, MANIFEST, manifest.to_json().encode())
        return manifest

    def _look(self) -> dict[tuple[str, int], Path]:
        """All markers, by file and time."""
        found = {}
        with os.scandir(self._output) as entries:
            for entry in entries:
                if is_marker(entry.name):
                    with may_be_gone():  # another process does it again
                        found[entry.name, entry.stat().st_mtime_ns] = Path(entry.path)
        return found

    def _read(self, found: dict[tuple[str, int], Path]) -> None:
        self._markers = {key: marker for key, marker in self._markers.items() if key in found}
        for key, path in found.items():
            if key not in self._markers:
                with may_be_gone():
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
