"""`select --duplicates`: copies of real photographs are found, whatever their size, format and quality, and other photographs are not."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import skimage
from PIL import Image

from loader import make_loader
from precompute import choose, pack, verify
from precompute.errors import UsageError
from precompute.shards.near_duplicates import near_duplicates
from tests.support.keyed_shards import write_shards
from tests.support.launching import TOY, run_here

PHOTOGRAPHS = (
    "astronaut",
    "coffee",
    "chelsea",
    "rocket",
    "camera",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
)


def copies(photograph: Image.Image) -> dict[str, bytes]:
    """The photograph, larger than all copies of it, and as others would pass it on."""
    half = photograph.resize((photograph.width // 2, photograph.height // 2), Image.Resampling.LANCZOS)
    grown = photograph.resize((photograph.width * 19 // 20, photograph.height * 19 // 20))
    encoded = {}
    for name, image, options in (
        ("a.png", photograph, {}),
        ("b.jpg", photograph.resize(half.size), {"quality": 30}),
        ("c.webp", half, {"quality": 60}),
        ("d.jpg", grown, {"quality": 95, "subsampling": 0}),
    ):
        out = io.BytesIO()
        image.save(out, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name[2:]], **options)
        encoded[name] = out.getvalue()
    return encoded


def test_copies_are_found_and_the_largest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, output, kept = tmp_path / "photos", tmp_path / "out", tmp_path / "kept.parquet"
    photos.mkdir()
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(skimage.data, name)()).convert("RGB").crop((0, 0, 512, 300))
        for copy, data in copies(photograph.resize((1024, 600))).items():
            (photos / f"{name}_{copy}").write_bytes(data)
            (photos / f"{name}_{copy[0]}.txt").write_text(f"{name} {copy}")
    given = ("builders/folder", "--data-dir", photos, "--output", output, *TOY, "--resolutions", "256")
    run_here(monkeypatch, capsys, *given)
    told = choose.count_chosen(choose.Config(str(output), duplicates=True, output=kept)).splitlines()
    groups = [sorted(line.split()) for line in told[: len(PHOTOGRAPHS)]]
    assert sorted(groups) == [[f"{name}_{copy}" for copy in "abcd"] for name in sorted(PHOTOGRAPHS)]
    assert [line.split()[0][-2:] for line in told[: len(PHOTOGRAPHS)]] == ["_a"] * len(PHOTOGRAPHS)
    assert told[len(PHOTOGRAPHS)] == "8 groups of nearly the same picture"
    keys = pq.read_table(kept)["key"].to_pylist()
    assert sorted(keys) == sorted(f"{name}_a" for name in PHOTOGRAPHS)
    batches = make_loader(output, 2, resolution=256, keys=str(kept), extras=["key"])
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(keys)
    # What was made before, and what is packed of both, is as whole as ever; but it has no hashes.
    assert not verify.verify(verify.Config(str(output))).findings
    pack.run(pack.Config((str(output),), tmp_path / "packed", keys=kept))
    assert "0 groups" in choose.count_chosen(choose.Config(str(tmp_path / "packed"), duplicates=True))


def test_every_pair_within_the_distance_and_no_other_is_found() -> None:
    generator = np.random.default_rng(5)
    for distance in (0, 1, 4, 12):
        hashes = generator.integers(0, 1 << 63, 300, dtype=np.uint64)
        for turn in range(100):
            bits = generator.choice(64, generator.integers(0, distance + 2), replace=False)
            hashes[200 + turn] = hashes[generator.integers(200 + turn)] ^ np.uint64(
                sum(1 << int(b) for b in bits)
            )
        near = np.bitwise_count(hashes[:, None] ^ hashes) <= distance
        names = np.arange(len(hashes))
        while (names != (names := np.where(near, names, len(names)).min(1))).any():
            pass
        assert near_duplicates(hashes, distance).tolist() == names.tolist()


def test_shards_without_hashes_and_distances_that_cannot_be_are_told(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", [3])
    with pytest.raises(UsageError, match="made before they were kept; remove the markers") as error:
        choose.count_chosen(choose.Config(str(folder), duplicates=True))
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="--distance 40: bits of 64, from 0 to 12"):
        choose.count_chosen(choose.Config(str(folder), duplicates=True, distance=40))
    with pytest.raises(UsageError, match="--distance 2: only with --duplicates"):
        choose.count_chosen(choose.Config(str(folder), distance=2))
