"""Colours and orientations against programs that are not ours: ImageMagick, and Pillow as `imagefolder` uses it."""

import functools
import io
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from builders.core.images import decode_rgb, is_whole, probe, shrink
from precompute.input.pixels import read_picture
from tests.support.judges import imagemagick
from tests.support.raw.photos import encode, jpeg, photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def matrix_profile(space: bytes = b"RGB ", gamma: float = 2.2, swap: bool = True) -> bytes:
    """A profile with a gamma curve; for RGB with the primaries of sRGB, red and green changed over, so that its colours are far off."""

    def s15(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    white = b"XYZ \0\0\0\0" + s15(0.9642) + s15(1) + s15(0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"odd \0" + bytes(11 + 67 + 3)
    tags = [(b"desc", text), (b"wtpt", white)]
    if space == b"GRAY":
        tags.append((b"kTRC", curve))
    else:
        primaries = [(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
        order = (1, 0, 2) if swap else (0, 1, 2)
        for name, index in zip((b"rXYZ", b"gXYZ", b"bXYZ"), order, strict=True):
            tags.append((name, b"XYZ \0\0\0\0" + b"".join(map(s15, primaries[index]))))
        tags += [(name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")]
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytearray(128)
    head[:4] = struct.pack(">I", at + len(body))
    head[8:12], head[12:16], head[16:20], head[20:24] = b"\2\x10\0\0", b"mntr", space, b"XYZ "
    head[36:40], head[68:80] = b"acsp", s15(0.9642) + s15(1) + s15(0.8249)
    return bytes(head) + struct.pack(">I", len(tags)) + table + body


ODD, GREY = matrix_profile(), matrix_profile(b"GRAY", 1.4)
PROFILED = {
    "JPEG": encode(photo(0), quality=95, icc_profile=ODD),
    "PNG": encode(photo(1), "PNG", icc_profile=ODD),
    "WEBP": encode(photo(2), "WEBP", lossless=True, icc_profile=ODD),
    "TIFF": encode(photo(3), "TIFF", icc_profile=ODD),
    "grey": encode(photo(4).convert("L"), "PNG", icc_profile=GREY),
}


def far(a: Image.Image, b: Image.Image) -> float:
    """Mean difference in grey levels."""
    assert a.size == b.size
    return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean())


@functools.cache
def judged(data: bytes, folder: Path) -> Image.Image:
    """What ImageMagick makes of it: upright, in sRGB, on white."""
    (folder / "srgb.icc").write_bytes(SRGB)
    (folder / "x").write_bytes(data)
    command = [
        imagemagick(),
        str(folder / "x[0]"),
        "-auto-orient",
        "-profile",
        str(folder / "srgb.icc"),
        "-background",
        "white",
        "-alpha",
        "remove",
    ]
    subprocess.run([*command, "-depth", "8", "-type", "TrueColor", f"PNG24:{folder / 'out.png'}"], check=True)
    return Image.open(folder / "out.png").convert("RGB")


@pytest.mark.parametrize("name", PROFILED)
def test_colours_are_those_that_imagemagick_shows(name: str, tmp_path: Path) -> None:
    data = PROFILED[name]
    seen = judged(data, tmp_path)
    assert far(decode_rgb(data), seen) < 1
    assert far(decode_rgb(data, color_profile="ignore"), seen) > 5, "the profile matters"


def test_cmyk_with_a_profile_is_as_imagemagick_shows_it(tmp_path: Path) -> None:
    profile = next(iter(Path("/usr/share/color/icc").rglob("*cmyk*.ic*")), None)
    if profile is None:
        pytest.skip("needs a CMYK profile")
    inks = ImageCms.profileToProfile(
        photo(0, (600, 560)), ImageCms.createProfile("sRGB"), str(profile), outputMode="CMYK"
    )
    assert inks is not None
    data = encode(inks, "TIFF", icc_profile=profile.read_bytes())
    assert far(decode_rgb(data), judged(data, tmp_path)) < 1.5
    for color_profile in ("srgb", "ignore"):
        small = Image.open(io.BytesIO(shrink(data, 256, color_profile=color_profile)))
        assert small.mode == "RGB" and "icc_profile" not in small.info, "a profile for inks is none for RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_srgb_by_any_name_and_profiles_that_cannot_be_used_change_nothing(kind: str) -> None:
    plain = decode_rgb(encode(photo(0), kind))
    for profile in (SRGB, b"no profile", ODD[:200], GREY, ODD[:16] + b"CMYK" + ODD[20:]):
        assert far(decode_rgb(encode(photo(0), kind, icc_profile=profile)), plain) == 0


def test_transparency_is_kept_while_colours_change() -> None:
    image = photo(0).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    canvas = Image.new("RGBA", image.size, "white")
    converted = decode_rgb(encode(photo(0), "PNG", icc_profile=ODD)).convert("RGBA")
    converted.putalpha(image.getchannel("A"))
    canvas.alpha_composite(converted)
    assert far(decode_rgb(encode(image, "PNG", icc_profile=ODD)), canvas.convert("RGB")) < 0.5


def test_a_small_copy_has_the_colours_and_no_profile() -> None:
    data = PROFILED["PNG"]
    small = shrink(data, 144, lossless=True)
    assert "icc_profile" not in Image.open(io.BytesIO(small)).info
    assert far(decode_rgb(small), decode_rgb(data).resize((160, 144), Image.Resampling.BICUBIC)) < 1
    kept = Image.open(io.BytesIO(shrink(data, 144, lossless=True, color_profile="ignore")))
    assert kept.info["icc_profile"] == ODD


def test_a_jpeg_scaled_while_decoded_has_the_same_colours() -> None:
    data = encode(photo(0, (1300, 1100)), quality=95, icc_profile=ODD)
    scaled = decode_rgb(data, shorter_edge=256)
    assert scaled.size == (325, 275)
    assert far(scaled, decode_rgb(data).resize(scaled.size, Image.Resampling.BOX)) < 3


# --- orientation: as Pillow, and `imagefolder` with it, turns a picture ----------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def xmp(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
        % orientation
    )


def exif(orientation: int, odd: bytes = b"") -> bytes:
    count = 1 + len(odd) // 12
    body = b"II*\0" + struct.pack("<IHHHIHH", 8, count, 0x112, 3, 1, orientation, 0) + odd + bytes(4)
    return b"Exif\0\0" + body


def segment(marker: bytes, body: bytes) -> bytes:
    return b"\xff" + marker + struct.pack(">H", len(body) + 2) + body


def xmp_in_png(orientation: int) -> bytes:
    data = encode(photo(0, (320, 280)), "PNG")
    return data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation)) + data[33:]


def exif_behind_the_pixels_of_a_png(orientation: int) -> bytes:
    data = encode(photo(0, (320, 280)), "PNG")
    return data[:-12] + chunk(b"eXIf", exif(orientation)[6:]) + data[-12:]


def xmp_in_tiff(orientation: int) -> bytes:
    return encode(photo(0, (320, 280)), "TIFF", tiffinfo={700: xmp(orientation)})


def xmp_in_jpeg(orientation: int) -> bytes:
    data = jpeg(0, (320, 280))
    return data[:2] + segment(b"\xe1", b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation)) + data[2:]


def exif_behind_the_frame(orientation: int) -> bytes:
    data = jpeg(0, (320, 280))
    at = data.index(b"\xff\xda")
    return data[:at] + segment(b"\xe1", exif(orientation)) + data[at:]


def exif_with_an_odd_tag(orientation: int) -> bytes:
    data = jpeg(0, (320, 280))
    return (
        data[:2]
        + segment(b"\xe1", exif(orientation, struct.pack("<HHI", 0x11B, 2, 3) + b"72\0\0"))
        + data[2:]
    )


def avif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x112] = orientation
    return encode(photo(0, (320, 280)), "AVIF", exif=tags)


def multi_picture(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x112] = orientation
    return encode(photo(0, (320, 280)), "MPO", save_all=True, append_images=[photo(1, (320, 280))], exif=tags)


WRITERS = [
    xmp_in_png,
    exif_behind_the_pixels_of_a_png,
    xmp_in_tiff,
    xmp_in_jpeg,
    exif_behind_the_frame,
    exif_with_an_odd_tag,
    avif,
    multi_picture,
]


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_size_and_pixels_are_turned_alike_wherever_the_orientation_stands(
    write: Any, orientation: int
) -> None:
    data = write(orientation)
    image = Image.open(io.BytesIO(data))
    upright: Image.Image | None
    try:
        upright = ImageOps.exif_transpose(image) or image
    except TypeError:  # Pillow fails to write the odd tag back
        upright = image.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else None
    size = (280, 320) if 5 <= orientation <= 8 else (320, 280)
    pixels = decode_rgb(data)
    assert probe(data)[1:] == pixels.size == size
    if upright is not None:
        assert far(pixels, upright.convert("RGB")) == 0
    picture = read_picture(data, [64])
    assert (picture.width, picture.height) == size


# --- damage and formats ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_a_png_damaged_anywhere_is_no_whole_image(mode: str) -> None:
    data = bytearray(encode(photo(0).convert(mode), "PNG"))
    rng = np.random.default_rng(1)
    for at in rng.integers(60, len(data) - 20, 25):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        if is_whole(bytes(damaged), "PNG"):
            decode_rgb(bytes(damaged))  # which would raise in the reader's loop


def test_a_strip_too_long_for_its_format_is_kept_as_png() -> None:
    strip = encode(Image.new("RGB", (300, 80_000), (9, 8, 7)), "PNG")
    assert probe(shrink(strip, 256)) == ("PNG", 256, 68_267)
    assert probe(shrink(encode(Image.new("RGB", (300, 20_000)), "BMP"), 280, lossless=True))[0] == "PNG"
