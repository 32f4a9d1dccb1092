"""The manifest of many processes: kept fresh by one of them at a time, by another where that one is gone."""

from collections.abc import Hashable
from pathlib import Path

import pytest

from loader.format import MANIFEST, Field, Manifest
from precompute.shards import manifest as module
from precompute.shards.manifest import ManifestKeeper
from precompute.shards.output_folder import OutputFolder
from precompute.shards.unit_writer import UnitWriter
from tests.support.waiting import Clock

PLAN, FIELDS = {"units": 9}, [Field("latents_8", "latents", "float16", (4, 1, 1))]


def keeper(folder: Path, output: OutputFolder | None = None) -> ManifestKeeper:
    found = ManifestKeeper(output or OutputFolder(folder), {"vae": "x"}, FIELDS, PLAN)
    found.start()
    return found


def finish(folder: Path, unit: int) -> None:
    writer = UnitWriter(OutputFolder(folder), unit, ["latents_8"], 10, f"1-{unit}")
    writer.commit({"vae": "x"}, FIELDS, PLAN, {})
    writer.discard()


def units_done(folder: Path) -> int:
    return Manifest.from_json((folder / MANIFEST).read_bytes()).splits["train"].units_done


def test_one_process_keeps_it_fresh_and_the_next_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    monkeypatch.setattr(module, "SHARE", 1e9)
    first, second = keeper(tmp_path), keeper(tmp_path)
    first.refresh()
    finish(tmp_path, 0)
    second.keep_fresh()
    assert units_done(tmp_path) == 0, "the first has written since the second looked: it is left to it"
    second.keep_fresh()
    assert units_done(tmp_path) == 1, "and nobody has since then"
    finish(tmp_path, 1)
    first.keep_fresh()
    assert units_done(tmp_path) == 1
    finish(tmp_path, 2)
    first.keep_fresh()
    assert units_done(tmp_path) == 3


def test_no_more_than_so_often(tmp_path: Path) -> None:
    only = keeper(tmp_path)
    finish(tmp_path, 0)
    only.keep_fresh()
    assert units_done(tmp_path) == 0, "half a minute is not over"
    assert only.refresh().splits["train"].units_done == units_done(tmp_path) == 1


class Restless(OutputFolder):
    """A slow folder: while the manifest is written, another process finishes one more unit, up to `most` of them."""

    units, most = 0, 10**9

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        if self.units < self.most:
            finish(self.path, self.units)
            self.units += 1


def test_markers_that_keep_coming_do_not_hold_a_process_up(tmp_path: Path, clock: Clock) -> None:
    folder = Restless(tmp_path)
    only = keeper(tmp_path, folder)
    assert folder.units == 1, "it writes once, and begins its work"
    clock.advance(3600)
    only.keep_fresh()
    assert folder.units == 2
    only.refresh()
    assert folder.units <= 2 + module.ROUNDS, "at its end it tries to have them all, within bounds"


def test_last_process_leaves_a_manifest_of_all_markers(tmp_path: Path) -> None:
    folder = Restless(tmp_path)
    only, folder.most = keeper(tmp_path, folder), 4
    assert only.refresh().splits["train"].units_done == units_done(tmp_path) == 4


class Hurried(OutputFolder):
    """Right before this process writes the manifest, another one finishes a unit and writes its own, `times` times."""

    units = times = 0

    def swap(self, name: str, data: bytes, version: Hashable) -> bool:
        if self.units < self.times:
            finish(self.path, self.units)
            self.units += 1
            keeper(self.path)
        return super().swap(name, data, version)


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_an_older_manifest_is_never_laid_over_a_newer(tmp_path: Path, times: int) -> None:
    folder = Hurried(tmp_path)
    only = keeper(tmp_path, folder)
    folder.times = times
    only.refresh()
    assert units_done(tmp_path) == folder.units == times


def test_each_marker_is_looked_at_once_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for unit in range(3):
        finish(tmp_path, unit)
    looks, look = [0], ManifestKeeper.list_markers

    def counted(self: ManifestKeeper) -> object:
        looks[0] += 1
        return look(self)

    monkeypatch.setattr(ManifestKeeper, "list_markers", counted)
    only = keeper(tmp_path)
    assert looks == [1]
    only.refresh()
    assert looks == [3], "once before it writes, once after"
