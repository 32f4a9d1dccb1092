"""`manifest.json`: written before the first unit, kept up to date from the markers, the same from whichever process.

It also guards the folder: markers or a manifest of another recipe or plan stop the run before any work.
"""

import hashlib
import time
from collections.abc import Collection, Hashable, Iterable
from dataclasses import replace
from typing import Any

from loader.format import (
    MANIFEST,
    NULL_CAPTION,
    Field,
    Manifest,
    Marker,
    Split,
    recipe_differences,
)
from loader.recipe import Plan, Recipe
from precompute.commands import retyped
from precompute.errors import RecipeMismatch
from precompute.shards.destination import Destination, Entry
from precompute.shards.markers import is_marker, manifest_of, parse_manifest, parse_marker
from precompute.shards.retry import end_retry, retry_began

INTERVAL = 30.0  # seconds between updates while units finish, by whichever process
ROUNDS = 5  # of reading and writing at the end of a run, at most, while others of another split go on
SHARE = 0.01  # of a process's time may go into them: ten thousand markers take a second


Key = tuple[str, Hashable]  # a marker's name and version: a unit may be done again


class ManifestKeeper:
    """The manifest of one output, as one process sees it. Not for use from two threads at once.

    null_caption: sha256 of null_caption.npz as the manifest had it that was there at the start.
    """

    def __init__(self, output: Destination, recipe: Recipe, fields: list[Field], plan: Plan) -> None:
        self._output, self._split = output, output.split
        self._ours, self._fields = (recipe, plan), fields
        self._markers: dict[Key, Marker] = {}
        self._due = 0.0
        self._seen: Hashable = None
        self.null_caption: str | None = None

    def start(self) -> Manifest:
        """Write the first manifest, or hold the one that is there against ours. Raises RecipeMismatch."""
        self._hold()
        return self._update()

    def look(self) -> None:
        """Hold what is there against ours, and write nothing. Raises RecipeMismatch."""
        self._hold()
        self._read(self.list_markers())

    def _hold(self) -> None:
        """Hold the manifest that is there against ours. Raises RecipeMismatch."""
        there = self._output.get(MANIFEST)
        if there is not None:
            manifest = parse_manifest(f"{self._output}/{MANIFEST}", there)
            _compare(self._output, manifest.recipe, manifest.splits.get(self._split), self._ours)
            self.null_caption = manifest.null_caption

    def refresh(self) -> Manifest:
        """The manifest that this process leaves at its end, of all markers.

        Two processes may write theirs at once: whoever finds a marker that its own version lacks writes again. Where
        markers keep coming, so does a process that writes them at its own end.
        """
        for _ in range(ROUNDS):
            manifest, found = self._write()
            if self.list_markers().keys() == found.keys():
                break
        if manifest.splits[self._split].complete:
            end_retry(self._output)
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
        manifest, _ = self._write()
        self._wait_from(started)
        return manifest

    def _wait_from(self, started: float) -> None:
        now = time.monotonic()
        self._due, self._seen = now + max(INTERVAL, (now - started) / SHARE), self._modified()

    def _modified(self) -> Hashable:
        """Another one whenever any process has written the manifest."""
        found = self._output.entry(MANIFEST)
        return found.version if found else None

    def reopen(self, reasons: Iterable[str]) -> int:
        """Let units be done again that have rows rejected for one of `reasons` and were finished before the retry began, by
        whichever process; how many."""
        began = {reason: retry_began(self._output, reason) for reason in reasons}
        found = self.list_markers() if began else {}
        again = set[int]()
        for key, m in self._markers.items():
            since = max((began.get(reason, 0) for reason in m.rejected), default=0)
            if m.split == self._split and key in found and found[key].time < since:
                again.add(m.unit)
        return self.redo(again)

    @property
    def finished(self) -> set[int]:
        """The units of this split that are."""
        return {marker.unit for marker in self._markers.values() if marker.split == self._split}

    def sources_then(self) -> dict[int, dict[str, Any]]:
        """Say of each finished unit what its source files looked like, where that is known."""
        markers = [marker for marker in self._markers.values() if marker.split == self._split]
        found = {marker.unit: marker.timings.get("sources") for marker in markers}
        return {unit: sources for unit, sources in found.items() if isinstance(sources, dict)}

    def redo(self, units: Collection[int]) -> int:
        """Take away the markers of these finished units, so that they are done again; how many."""
        found = self.list_markers() if units else {}
        mine = {key for key, m in self._markers.items() if m.split == self._split and m.unit in units}
        # Where one is not among those found, another process was quicker.
        gone = mine & found.keys()
        for name, _ in gone:
            self._output.delete(name)
        if units:
            self._update()
        return len(gone)

    @property
    def largest_unit(self) -> int:
        """Bytes of its tars."""
        return max((sum(shard.bytes for shard in m.shards) for m in self._markers.values()), default=0)

    def manifest(self) -> Manifest:
        recipe, plan = self._ours
        manifest = manifest_of(recipe, self._fields, self._markers.values())
        manifest.splits.setdefault(self._split, Split(plan, 0, (), {}))
        return manifest

    def samples_since(self, units: set[int]) -> int | None:
        """Samples of this split's finished units, those in `units` aside; None where there are no others."""
        mine = [m for m in self._markers.values() if m.split == self._split and m.unit not in units]
        return sum(marker.samples for marker in mine) if mine else None

    def _write(self) -> tuple[Manifest, dict[Key, Entry]]:
        """Write the manifest of all markers that are there, and return both; an older one is never laid over a newer.

        Where others have written meanwhile, twice, it is left to them: the second one saw all that was there at first.
        """
        for _ in range(2):
            version, found = self._modified(), self.list_markers()
            self._read(found)
            null = self._output.get(NULL_CAPTION)
            digest = hashlib.sha256(null).hexdigest() if null is not None else None
            manifest = replace(self.manifest(), null_caption=digest)
            if self._output.swap(MANIFEST, manifest.to_json().encode(), version):
                break
        return manifest, found

    def list_markers(self) -> dict[Key, Entry]:
        """All markers."""
        return {(name, entry.version): entry for name, entry in self._output.files(is_marker).items()}

    def _read(self, found: dict[Key, Entry]) -> None:
        self._markers = {key: marker for key, marker in self._markers.items() if key in found}
        new = [key for key in found if key not in self._markers]
        for key, data in zip(new, self._output.get_many(name for name, _ in new), strict=True):
            if data is None:  # another process does it again
                continue
            marker = parse_marker(f"{self._output}/{key[0]}", data)
            plan = Split(marker.plan, 0, (), {}) if marker.split == self._split else None
            _compare(self._output, marker.recipe, plan, self._ours)
            self._markers[key] = marker


def _compare(output: Destination, recipe: Recipe, split: Split | None, ours: tuple[Recipe, Plan]) -> None:
    """Hold a recipe and a split that lie at the output against our recipe and plan. Raises RecipeMismatch."""
    different = recipe_differences(recipe, ours[0])
    if split is not None:
        different += recipe_differences(split.plan, ours[1], "plan")
    if different:
        lines = "\n  ".join(different)
        cure = f"Use the same flags as then, or another output: {retyped(output='{}-2')}"
        if all(line.startswith("plan.") for line in different):
            cure = (
                "Where files came or went since, what is new goes into a folder of its own, NEW say, and to a second output: "
                f"{retyped(data_dir='NEW', output='{}-2')}; the loader reads both as one dataset, make_loader([OUT, OUT2], ...). "
                f"{cure.replace('Use', 'Else use')}"
            )
        if all(line.startswith("plan.base.") for line in different):
            cure = f"The base has changed since: make the layer again, with another output: {retyped(output='{}-2')}"
        raise RecipeMismatch(f"--output {output}: it holds shards of another recipe:\n  {lines}\n{cure}")
