"""Which part of a picture is taken: to a fraction of a pixel, upright, and in the shape of its bucket."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from loader.format import Manifest
from precompute import run
from precompute.errors import RecipeMismatch, UsageError
from precompute.input.pixels import buckets, nearest_bucket, place_of, read_picture
from precompute.verify import Config as VerifyConfig
from precompute.verify import verify
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import encode, jpeg, photo


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(one.astype(float) - other).mean(), 1e-9)))


def exact(data: bytes, width: int, height: int) -> np.ndarray:
    """Every pixel decoded, turned upright, cropped to the shape by fractions of a pixel, resized."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    scale = min(image.width / width, image.height / height)
    x, y = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (x, y, image.width - x, image.height - y)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


@pytest.mark.parametrize(
    "size", [(1540, 1027), (1155, 771), (2251, 1501), (630, 621), (617, 931), (2063, 2071)]
)
def test_scaled_decoding_is_not_off_by_a_part_of_a_pixel(size: tuple[int, int]) -> None:
    for number in (0, 1, 3):
        data = encode(photo(number, size), quality=92)
        assert psnr(read_picture(data, [256]).pixels[256], exact(data, 256, 256)) >= 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright_to_a_part_of_a_pixel(orientation: int) -> None:
    """1,027 and 1,541 are scaled to 257 and 386 pixels, of which a part is padding: on which side depends on EXIF."""
    data = jpeg(0, (1541, 1027), orientation=orientation)
    picture = read_picture(data, [128])
    assert (picture.width, picture.height) == ((1541, 1027) if orientation < 5 else (1027, 1541))
    assert psnr(picture.pixels[128], exact(data, 128, 128)) >= 40


# --- buckets ---


@pytest.mark.parametrize(("resolution", "step"), [(1024, 64), (512, 64), (256, 32), (512, 8)])
def test_buckets_are_multiples_of_the_step_with_the_area_of_the_square(resolution: int, step: int) -> None:
    found = buckets(resolution, step)
    assert (resolution, resolution) in found
    for width, height in found:
        assert width % step == height % step == 0
        assert width * height <= resolution**2
        assert min(width, height) * 4 >= max(width, height)
        assert (height, width) in found
        assert (width + step) * height > resolution**2 or width * (height + step) > resolution**2


def test_the_buckets_of_sdxl_are_among_them() -> None:
    sdxl = {
        (1024, 1024),
        (1152, 896),
        (896, 1152),
        (1216, 832),
        (832, 1216),
        (1344, 768),
        (768, 1344),
        (1536, 640),
    }
    assert sdxl <= set(buckets(1024, 64))


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((1000, 1000), (1024, 1024)),
        ((3000, 2000), (1216, 832)),
        ((2000, 3000), (832, 1216)),
        ((1920, 1080), (1344, 768)),
        ((10_000, 100), (2048, 512)),
    ],
)
def test_nearest_bucket(size: tuple[int, int], bucket: tuple[int, int]) -> None:
    assert nearest_bucket(*size, 1024, 64) == bucket


@pytest.mark.parametrize("size", [(1500, 1000), (1000, 1500), (900, 900), (2000, 400), (1023, 577)])
def test_bucket_is_the_largest_central_part_of_its_shape(size: tuple[int, int]) -> None:
    data = encode(photo(1, size), quality=95)
    picture = read_picture(data, [256, 128], step=32)
    assert (picture.width, picture.height) == size
    for resolution, pixels in picture.pixels.items():
        width, height = nearest_bucket(*size, resolution, 32)
        assert pixels.shape == (height, width, 3)
        assert psnr(pixels, exact(data, width, height)) >= 40
    left, top, right, bottom = picture.crop
    width, height = nearest_bucket(*size, 256, 32)
    assert abs((right - left) / (bottom - top) - width / height) < 0.01
    assert left == 0 or top == 0, "nothing is cut off in both directions"
    assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]


def test_random_crop_is_drawn_from_key_and_seed_alone() -> None:
    places = {(seed, key): place_of("random", seed, key) for seed in (0, 1) for key in ("a", "b", "c")}
    assert len(set(places.values())) == 6 and all(0 <= x < 1 for place in places.values() for x in place)
    assert place_of("random", 1, "b") == places[1, "b"] and place_of("center", 1, "b") == (0.5, 0.5)
    drawn = np.array([place_of("random", 0, f"{key}") for key in range(2000)])
    assert abs(drawn.mean(0) - 0.5).max() < 0.03 and abs(drawn.std(0) - 12**-0.5).max() < 0.02


@pytest.mark.parametrize(("place", "left"), [((0.0, 0.9), 0), ((0.25, 0.5), 75), ((1.0, 0.1), 300)])
def test_crop_lies_where_it_is_said_to(place: tuple[float, float], left: int) -> None:
    image = photo(1, (900, 600))
    picture = read_picture(encode(image, "PNG"), [128, 64], place=place)
    assert picture.crops == {128: (left, 0, left + 600, 600), 64: (left, 0, left + 600, 600)}
    for resolution, pixels in picture.pixels.items():
        box = (left, 0, left + 600, 600)
        np.testing.assert_array_equal(
            pixels, image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box)
        )


@pytest.mark.parametrize("buckets", [None, 16])
def test_run_with_random_crops_is_found_right_by_verify(tmp_path: Path, buckets: int | None) -> None:
    """Which holds each resolution against its own crop of the source."""
    write_tar(
        tmp_path / "raw" / "a.tar",
        [
            m
            for n in range(6)
            for m in ((f"k{n}.jpg", jpeg(n, (640 - 70 * n, 300))), (f"k{n}.txt", b"a caption"))
        ],
    )
    options = {"data_dir": tmp_path / "raw", "vae": "toy", "text_encoder": ("toy",), "dtype": "float32"}
    config = run.Config(
        "builders/webdataset",
        tmp_path / "out",
        resolutions=(64, 128),
        crop="random",
        buckets=buckets,
        **options,
    )
    run.run(config)
    recipe = Manifest.from_json((tmp_path / "out" / "manifest.json").read_bytes()).recipe
    assert (recipe["crop"], recipe["seed"]) == ("random", 0)
    report = verify(VerifyConfig(str(tmp_path / "out"), decode=6, data_dir=tmp_path / "raw"))
    assert not report.findings
    assert len(report.psnr) == 12 and min(report.psnr.values()) > 12
    with pytest.raises(RecipeMismatch, match=r"seed: 0 there, 1 here"):
        run.run(replace(config, seed=1))


def test_run_with_buckets_writes_one_size_a_tar(tmp_path: Path) -> None:
    """And rejected rows between them do not open a shard of their own."""
    raw, output = tmp_path / "raw", tmp_path / "out"
    sizes = [(300, 300), (600, 300), (300, 600), (320, 310), (610, 300), (300, 301), (590, 300)]
    members = [("bad.jpg", b"<html>"), ("bad.txt", b"bad")]
    for number, size in enumerate(sizes):
        members += [(f"k{number}.jpg", jpeg(number, size)), (f"k{number}.txt", b"a caption")]
        members += [(f"bad{number}.jpg", b"<html>"), (f"bad{number}.txt", b"bad")]
    write_tar(raw / "a.tar", members)
    run.run(
        run.Config(
            "builders/webdataset",
            output,
            data_dir=raw,
            vae="toy",
            text_encoder=("toy",),
            resolutions=(64,),
            buckets=16,
            flip=True,
            batch_size=2,
            num_threads=2,
            dtype="float32",
        )
    )
    manifest = Manifest.from_json((output / "manifest.json").read_bytes())
    assert manifest.recipe["bucket_step"] == 16 and manifest.recipe["flip"]
    for name in ("moments_64", "moments_64_flipped"):
        assert manifest.field(name).shape == (8, None, None)
    train = manifest.splits["train"]
    assert (train.samples, train.rejected) == (7, {"undecodable": 8})
    shapes, keys = {}, []
    for shard in train.shards:
        rows = pq.read_table(output / f"{shard.name}.parquet").to_pylist()
        keys += [row["key"] for row in rows]
        with tarfile.open(output / f"{shard.name}.tar") as tar:
            arrays = {
                m.name: np.load(io.BytesIO(tar.extractfile(m).read())) for m in tar if ".moments" in m.name
            }
            facts = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
        (shapes[shard.name],) = {array.shape for array in arrays.values()}
        assert all(fact["width"] and len(fact["crop"]) == 4 for fact in facts)
    assert sorted(shapes.values()) == sorted({(8, h // 8, w // 8) for w, h in {
        nearest_bucket(*size, 64, 16) for size in sizes
    }})  # fmt: skip
    assert len(keys) == len(set(keys)) == 15


def test_bucket_step_must_fit_the_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--buckets 20: not divisible by 8"):
        run.run(
            run.Config(
                "builders/demo", tmp_path, vae="toy", text_encoder=("toy",), resolutions=(64,), buckets=20
            )
        )
