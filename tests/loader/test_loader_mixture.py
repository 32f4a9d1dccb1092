"""Mixtures and buckets, end to end."""

import dataclasses
import json
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from loader import LatentDataset, make_loader
from loader.format import MANIFEST, Field, npy_bytes
from precompute.shards.markers import manifest_of
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.unit_writer import SidecarRow, UnitWriter
from tests.support.keyed_shards import arrays, write_shards


def test_a_mixture_holds_its_weights_and_says_so(shards: Path, more_shards: Path) -> None:
    batches = make_loader([shards, more_shards], 10, weights=[1, 4], resolution=512, extras=["key"])
    assert len(batches) == 13
    seen: list[str] = []
    for _ in range(3):
        for batch in batches:
            assert sum(key.startswith("m") for key in batch["key"]) == 8
            seen += batch["key"]
    assert batches.stats()["mixture"] == {str(shards): 0.2, str(more_shards): 0.8}
    ours = [key for key in seen if key.startswith("k")]
    theirs = [key for key in seen if key.startswith("m")]
    assert len(set(ours)) == len(ours)  # 78 of the first epoch of 100
    assert all(len(set(theirs[at : at + 30])) == 30 for at in range(0, 300, 30))  # epochs of 30, ten of them


@pytest.mark.parametrize("weights", [[1, 4], [0.37, 0.63], [7, 1]])
def test_the_share_of_a_path_is_its_weight_over_any_stretch(
    shards: Path, more_shards: Path, weights: list[float]
) -> None:
    """It holds for ten epochs and any of their beginnings, give or take one; each sample of a path comes as often as any other."""
    batches = make_loader([shards, more_shards], 10, weights=weights, resolution=512, extras=["key"])
    keys = [key for _ in range(10) for batch in batches for key in batch["key"]]
    exact = [Fraction(str(weight)) for weight in weights]
    theirs = np.cumsum([key[0] == "m" for key in keys]).tolist()
    # (an epoch begins anew, with what it takes to be whole)
    epoch = 10 * len(batches)
    for end in range(1, epoch + 1):
        assert abs(theirs[end - 1] - end * exact[1] / sum(exact)) <= 1, end
    assert abs(theirs[-1] - len(keys) * exact[1] / sum(exact)) <= 10
    counts = Counter(keys)
    for path in "km":
        own = [count for key, count in counts.items() if key[0] == path]
        assert max(own) - min(own) <= 1
    assert len(counts) == 130


def test_without_weights_every_sample_of_every_path_comes_once(shards: Path, more_shards: Path) -> None:
    batches = make_loader([shards, more_shards], 13, resolution=512, extras=["key"])
    keys = [key for batch in batches for key in batch["key"]]
    assert len(keys) == len(set(keys)) == 130


def test_an_empty_path_cannot_have_a_weight(shards: Path, tmp_path: Path) -> None:
    empty = write_shards(tmp_path / "b", [0])
    with pytest.raises(ValueError, match="path number 1 has no samples"):
        make_loader([shards, empty], 10, weights=[1, 1], resolution=512)


def test_a_path_smaller_than_the_partitions_cannot_have_a_weight(shards: Path, tmp_path: Path) -> None:
    tiny = write_shards(tmp_path / "b", [3])
    options = {"weights": [1, 1], "resolution": 512, "rank": 0, "world_size": 4, "partitions": 4}
    with pytest.raises(ValueError, match="partitions=4: path number 1 has 3 samples"):
        make_loader([shards, tiny], 4, **options)


# --- buckets: shards of several image shapes --------------------------------------------------------------------------

SIZES = {"512x512": (8, 8), "384x640": (6, 10), "640x384": (10, 6)}


def write_buckets(folder: Path, counts: dict[str, list[int]], prefix: str = "") -> Path:
    """One shard for each number, all of one bucket; the manifest says which."""
    fields = [Field("latents_512", "latents", "float16", (4, None, None))]
    folder.mkdir()
    markers, number = [], 0
    order = [(bucket, count) for bucket, several in counts.items() for count in several]
    for unit, (bucket, count) in enumerate(order[::-1]):
        writer = UnitWriter(OutputFolder(folder), unit, ["latents_512"], 1 << 20, "test")
        for _ in range(count):
            height, width = SIZES[bucket]
            key = f"{prefix}{bucket}-{number:04d}"
            number += 1
            rng = np.random.default_rng(number)
            array = rng.normal(size=(4, height, width)).astype(np.float16)
            writer.write(SidecarRow(key), {"latents_512.npy": npy_bytes(array)})
        marker = writer.commit({}, fields, {"units": len(order)}, {})
        writer.discard()
        shards = tuple(dataclasses.replace(shard, bucket=bucket) for shard in marker.shards)
        markers.append(dataclasses.replace(marker, shards=shards))
    write_file(folder / MANIFEST, manifest_of({}, fields, markers).to_json().encode())
    return folder


COUNTS = {"512x512": [20, 17], "384x640": [9, 12], "640x384": [3]}


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_batch_is_of_one_bucket(tmp_path: Path, drop_last: bool, world_size: int) -> None:
    path = write_buckets(tmp_path / "a", COUNTS)
    keys, shapes = [], []
    for rank in range(world_size):
        batches = make_loader(path, 4, extras=["key"], drop_last=drop_last, rank=rank, world_size=world_size)
        for batch in batches:
            buckets = {key.split("-")[0] for key in batch["key"]}
            assert len(buckets) == 1
            assert batch["image_latents"].shape == (4, 4, *SIZES[buckets.pop()])
            keys += batch["key"]
            shapes.append(batch["image_latents"].shape)
    if drop_last:
        assert len(keys) == len(set(keys)) == (9 + 5) * 4
    else:
        assert len(set(keys)) == 61 and len(keys) >= (10 + 6 + 1) * 4
    assert len(set(shapes[:5])) > 1  # spread, not one bucket after the other


def test_a_state_among_buckets_goes_on_exactly(tmp_path: Path) -> None:
    path = write_buckets(tmp_path / "a", COUNTS)
    whole = [key for batch in make_loader(path, 4, extras=["key"]) for key in batch["key"]]
    first = LatentDataset(path, 4, extras=["key"])
    seen = []
    for batch, _ in zip(first, range(5), strict=False):
        seen += batch["key"]
    seen = seen[:20]
    state = json.loads(json.dumps({**first.state_dict(), "position": 20}))
    again = make_loader(path, 4, extras=["key"])
    again.load_state_dict(state)
    assert seen + [key for batch in again for key in batch["key"]] == whole
    with pytest.raises(ValueError, match="unit: 4 there, 2 here"):
        make_loader(path, 2).load_state_dict(state)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("partitions", [2, 4])
def test_buckets_are_partitioned_with_each_key_once(tmp_path: Path, drop_last: bool, partitions: int) -> None:
    """Rank after rank, over several epochs: a whole epoch holds what it holds without partitions, each key once."""
    path = write_buckets(tmp_path / "a", {"512x512": [30, 34], "384x640": [9, 12], "640x384": [13]})
    expected = (16 + 5 + 3) * 4 if drop_last else 98  # (64, 21 and 13 samples; 24 batches on 4 ranks)
    loaders = [
        make_loader(
            path, 4, extras=["key"], partitions=partitions, rank=rank, world_size=4, drop_last=drop_last
        )
        for rank in range(4)
    ]
    for epoch in range(3):
        batches = [batch for loader in loaders for batch in loader]
        assert {len({key.split("-")[0] for key in batch["key"]}) for batch in batches} == {1}
        keys = [
            key
            for batch in batches
            for key, real in zip(batch["key"], batch.get("sample_mask", [True] * 4), strict=True)
            if real
        ]
        assert len(keys) == len(set(keys)) == expected, epoch


def test_buckets_are_mixed_by_weight(tmp_path: Path) -> None:
    """Each path has its share of the batches, over any stretch; inside of it each bucket its own."""
    a = write_buckets(tmp_path / "a", {"512x512": [40], "384x640": [20]}, prefix="a")
    b = write_buckets(tmp_path / "b", {"512x512": [8], "384x640": [16]}, prefix="b")
    batches = make_loader([a, b], 4, weights=[1, 3], extras=["key"])
    counts: Counter[str] = Counter()
    for _ in range(20):
        for batch in batches:
            kinds = {key[:2] for key in batch["key"]}
            assert len(kinds) == 1  # one path, one bucket
            counts[kinds.pop()] += 1
    assert sum(counts.values()) == 20 * len(batches) == 420
    assert [counts[kind] for kind in ("a5", "a3", "b5", "b3")] == pytest.approx([70, 35, 105, 210], abs=2)
    with pytest.raises(ValueError, match="path number 1 fills no batch"):
        make_loader([a, b], 20, weights=[1, 1])


def test_a_bucket_that_never_fills_a_batch_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_buckets(tmp_path / "a", COUNTS)
    make_loader(path, 4)
    assert "bucket 640x384 holds 3 samples, which never fill a batch of 4" in caplog.text
    caplog.clear()
    seen = {key for batch in make_loader(path, 4, drop_last=False, extras="key") for key in batch["key"]}
    assert len(seen) == 61 and not caplog.text


def test_what_buckets_cannot_do_is_refused(tmp_path: Path, shards: Path) -> None:
    path = write_buckets(tmp_path / "a", COUNTS)
    manifest = json.loads((path / MANIFEST).read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        del shard["bucket"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="does not say which shard is of which bucket"):
        make_loader(path, 4)


def test_samples_tell_their_keys() -> None:
    """What the other tests lean on."""
    assert not np.array_equal(arrays("k000001")["moments_256"], arrays("k000002")["moments_256"])
