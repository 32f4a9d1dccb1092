"""Training that goes on with shards that were added since its state was saved."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loader import make_loader
from loader.format import Manifest
from loader.state import PathShards, ShardSet, unit_of
from tests.support.keyed_shards import write_shards

OPTIONS: dict[str, Any] = {
    "resolution": 256,
    "text_encoders": [""],
    "extras": ["key"],
    "seed": 3,
    "shuffle_window": 32,
}


def keep_shards(path: Path, kept: list[int]) -> None:
    """Rewrite the manifest as it was when only some of the units were finished."""
    whole = path / "whole.json"
    if not whole.exists():
        whole.write_bytes((path / "manifest.json").read_bytes())
    manifest = Manifest.from_json(whole.read_text())
    split = manifest.splits["train"]
    shards = tuple(split.shards[number] for number in kept)
    # One row of each shard was rejected.
    found = replace(split, shards=shards, units_done=len(kept), rejected={"too_small": len(kept)})
    (path / "manifest.json").write_text(replace(manifest, splits={"train": found}).to_json())


@pytest.mark.parametrize("old", [[0, 1, 2], [0, 2, 3], [1, 4], [5]])
def test_training_goes_on_with_shards_that_were_added(tmp_path: Path, old: list[int]) -> None:
    """Also with such as lie between the old ones; at the beginning of a new epoch, which is whole."""
    path = write_shards(tmp_path / "a", [20, 10, 10, 20, 30, 10])
    keep_shards(path, old)
    before = make_loader(path, 5, **OPTIONS)
    next(iter(before))
    state = json.loads(json.dumps(before.state_dict()))
    before.close()
    keep_shards(path, list(range(6)))
    after = make_loader(path, 5, **OPTIONS)
    new = [f"train-{number:05d}" for number in range(6) if number not in old]
    with pytest.raises(
        ValueError, match=rf"shards: {len(old)} there, 6 here; added since: {', '.join(new)}\. "
    ):
        after.load_state_dict(state)
    after.load_state_dict(state, shards="added")
    assert (after.state_dict()["epoch"], after.state_dict()["position"]) == (1, 0)
    keys = [key for batch in after for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 100
    again = make_loader(path, 5, **OPTIONS)
    again.load_state_dict(after.state_dict(), shards="added")  # nothing was: it goes on where it was
    assert again.state_dict() == after.state_dict()


def test_shards_that_are_gone_or_changed_are_named(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "a", [20, 10, 10, 20])
    state = make_loader(path, 5, **OPTIONS).state_dict()
    keep_shards(path, [0, 3])
    for shards in ("same", "added"):
        with pytest.raises(ValueError, match=r"4 there, 2 here; .*a has no unit 1, .*a has no unit 2"):
            make_loader(path, 5, **OPTIONS).load_state_dict(state, shards=shards)  # type: ignore[arg-type]
    other = write_shards(tmp_path / "b", [20, 10, 11, 20, 5])
    for shards in ("same", "added"):
        with pytest.raises(ValueError, match="4 there, 5 here; of the same names, and of another"):
            make_loader(other, 5, **OPTIONS).load_state_dict(state, shards=shards)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shards='more': expected 'same' or 'added'"):
        make_loader(path, 5, **OPTIONS).load_state_dict(state, shards="more")  # type: ignore[arg-type]


def test_a_state_stays_small_whatever_the_shards(tmp_path: Path) -> None:
    """Two integers for a whole dataset, one more for each gap, and no more than some."""
    names = [f"train-{unit:05d}-{part:02d}" for unit in range(20_000) for part in range(5)]
    whole = ShardSet([PathShards("x", "", names, [1] * len(names))])
    assert len(whole.state()) == 3
    gaps = [name for name in names if unit_of(name) % 1000]
    assert len(ShardSet([PathShards("x", "", gaps, [1] * len(gaps))]).state()) == 2 + 20
    every = [name for name in names if unit_of(name) % 2]
    scattered = ShardSet([PathShards("x", "", every, [1] * len(every))]).state()
    assert len(scattered) == 2
    assert whole.difference(scattered) == "shards: 50000 there, 100000 here; which, the state does not say"


def test_many_shards_that_are_gone_are_counted() -> None:
    def shard_set(units: int) -> ShardSet:
        names = [f"train-{unit:05d}" for unit in range(units)]
        return ShardSet([PathShards("x", "", names, [1] * units)])

    gone = ", ".join(f"x has no unit {unit}" for unit in range(2, 10))
    told = shard_set(2).difference(shard_set(200).state())
    assert told == f"shards: 200 there, 2 here; {gone} and 190 more"
    assert shard_set(2).difference(shard_set(10).state()) == f"shards: 10 there, 2 here; {gone}"


def test_shards_of_names_that_tell_no_unit_are_known_as_a_whole() -> None:
    parts = [PathShards("x", "", ["train-00000", "one", "two"], [1, 1, 1])]
    state = ShardSet(parts).state()
    assert state.keys() == {"shards", "num_shards"}
    assert ShardSet(parts).difference(state) == ""
    fewer = ShardSet([PathShards("x", "", ["train-00000", "one"], [1, 1])])
    assert fewer.difference(state) == "shards: 3 there, 2 here; which, the state does not say"


@pytest.mark.parametrize("packed", [-1, 2**62, "3", (1 << 31) + (1 << 30)])
def test_a_state_that_names_no_shards_is_refused(shards: Path, packed: Any) -> None:
    batches = make_loader(shards, 10, **OPTIONS)
    state = {**batches.state_dict(), "shards": 5, "units 0.0": packed}
    for how in ("same", "added"):
        with pytest.raises(ValueError, match="shards: 7 there, 7 here"):
            batches.load_state_dict(state, shards=how)  # type: ignore[arg-type]
