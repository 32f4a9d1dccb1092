"""The manifest of many processes: kept fresh by one of them at a time, by another where that one is gone."""

from pathlib import Path

import pytest

from loader.format import MANIFEST, Field, Manifest
from precompute import manifest as module
from precompute.manifest import ManifestKeeper
from precompute.shards import UnitWriter

PLAN, FIELDS = {"units": 9}, [Field("latents_8", "latents", "float16", (4, 1, 1))]


def keeper(folder: Path) -> ManifestKeeper:
    found = ManifestKeeper(folder, "train", {"vae": "x"}, FIELDS, PLAN)
    found.start()
    return found


def finish(folder: Path, unit: int) -> None:
    writer = UnitWriter(folder, "train", unit, ["latents_8"], 10, f"1-{unit}")
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
