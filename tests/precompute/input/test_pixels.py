"""Geometry and quality of decoding: DCT-scaled pixels are those of a full decode, to 40 dB."""

import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from builders.core.images import MAX_PIXELS, UndecodableImage, is_whole, probe
from precompute.input.pixels import read_picture, recipe
from tests.support.mutations import mutated
from tests.support.raw.photos import encode, jpeg, photo, png


def full_decode(data: bytes, resolution: int) -> np.ndarray:
    """The plain way: every pixel, bicubic to the shorter edge, central crop."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    scale = resolution / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return np.asarray(image.crop((left, top, left + resolution, top + resolution)))


def psnr(left: np.ndarray, right: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(left.astype(float) - right).mean(), 1e-9)))


@pytest.mark.parametrize("size", [(2250, 1500), (1500, 2250), (1100, 1100)])
def test_dct_scaled_pixels_are_those_of_a_full_decode(size: tuple[int, int]) -> None:
    data = encode(photo(0, size), quality=92)
    picture = read_picture(data, [256, 512])
    assert (picture.width, picture.height) == size
    for resolution, pixels in picture.pixels.items():
        assert pixels.shape == (resolution, resolution, 3) and pixels.dtype == np.uint8
        assert psnr(pixels, full_decode(data, resolution)) >= 40


def test_sideways_photograph_is_turned_upright() -> None:
    upright = photo(1, (400, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows run from top to bottom
    data = encode(upright.transpose(Image.Transpose.ROTATE_90), quality=95, exif=exif)
    picture = read_picture(data, [256])
    assert (picture.width, picture.height) == (400, 300)
    assert picture.crop == (50, 0, 350, 300)
    assert psnr(picture.pixels[256], full_decode(encode(upright, quality=95), 256)) > 30


def test_small_picture_is_enlarged() -> None:
    picture = read_picture(encode(photo(2, (130, 100)), "PNG"), [256])
    assert picture.pixels[256].shape == (256, 256, 3)
    assert picture.crop == (15, 0, 115, 100)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "undecodable"),
        (b"<html></html>", "undecodable"),
        (encode(photo(0))[:2000], "undecodable"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (60000).to_bytes(4) * 2 + b"\x08\x02\0\0\0", "too_large"),
    ],
)
def test_unfit_images_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UndecodableImage) as error:
        read_picture(data, [256])
    assert error.value.reject == reason


DAMAGED = {
    "JPEG": jpeg(0, (96, 80)),
    "progressive JPEG": encode(photo(2, (96, 80)), "JPEG", progressive=True),
    "lossless WebP": encode(photo(2, (96, 80)), "WEBP", lossless=True),
    **{kind: encode(photo(1, (96, 80)), kind) for kind in ("PNG", "WEBP", "AVIF", "GIF", "TIFF")},
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_picture_damaged_anywhere_becomes_pixels_or_a_reason(kind: str) -> None:
    """What passed the gate too: pixels are read once more here, and a reason goes into the ledger."""
    passed = unfit = 0
    for seed in range(int(os.environ.get("LATENTMILL_FUZZ", "2000"))):
        data = mutated(DAMAGED[kind], seed)
        try:
            info = probe(data)
            passed += info.width * info.height <= MAX_PIXELS and is_whole(data, info.format)
        except UndecodableImage:
            pass
        try:
            picture = read_picture(data, [32])
        except UndecodableImage as error:
            assert error.reject in ("undecodable", "unsupported_format", "too_large")
            unfit += 1
        else:
            assert picture.pixels[32].shape == (32, 32, 3)
    # Of a PNG every byte has its checksum.
    assert unfit and (passed or kind == "PNG")


GOLDEN = {2: "94f8e7c18611fc5c"}


def test_pixels_of_a_version_never_change() -> None:
    """Whoever changes a pixel gives `precompute.input.pixels.recipe` another version: it tells shards of different pixels apart.

    An exact sum: another version of Pillow may change it too, and is the same event.
    """
    sources = [
        (jpeg(0, (900, 700)), None),
        (jpeg(1, (701, 1403), orientation=6), None),
        (png(2, (130, 100)), None),
        (jpeg(3, (640, 300)), 32),
    ]
    digest = hashlib.sha256()
    for data, step in sources:
        picture = read_picture(data, [128, 256], step)
        digest.update(repr((picture.width, picture.height, picture.crop)).encode())
        for pixels in picture.pixels.values():
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[recipe(None)["version"]]


@pytest.mark.parametrize("place", [(0.9, 0.25), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("size", [(600, 900), (900, 600), (600, 600)])
def test_a_crop_elsewhere_is_a_square_whatever_the_shape(
    size: tuple[int, int], place: tuple[float, float]
) -> None:
    image = photo(1, size)
    picture = read_picture(encode(image, "PNG"), [128], place=place)
    left, top = int((size[0] - 600) * place[0]), int((size[1] - 600) * place[1])
    box = (left, top, left + 600, top + 600)
    assert picture.crops == {128: box}
    expected = image.resize((128, 128), Image.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(picture.pixels[128], np.asarray(expected))
