"""Image bytes: formats by content, sizes as seen, damage found from the trailer, every mode to RGB, small copies."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from builders.core.images import (
    MAX_PIXELS,
    ImageTooLarge,
    UndecodableImage,
    UnsupportedImage,
    decode_rgb,
    is_whole,
    probe,
    shrink,
    sniff,
)
from tests.support.raw.photos import HTML, bomb, encode, jpeg, photo, png, truncated, webp

ENCODED = {kind: encode(photo(1), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")}


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.mean((np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


@pytest.mark.parametrize("kind", ENCODED)
def test_format_and_size_come_from_the_bytes(kind: Any) -> None:
    data = ENCODED[kind]
    assert sniff(data) == kind
    assert probe(data) == (kind, 320, 288)
    assert is_whole(data, kind)


@pytest.mark.parametrize("kind", ENCODED)
@pytest.mark.parametrize("keep", [0.9, 0.5, 0.2])
def test_a_cut_file_is_not_whole_or_not_an_image(kind: Any, keep: Any) -> None:
    data = ENCODED[kind][: int(len(ENCODED[kind]) * keep)]
    try:
        info = probe(data)
    except UndecodableImage:
        return
    assert not is_whole(data, info.format)
    with pytest.raises(UndecodableImage):
        decode_rgb(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_what_passes_a_check_of_pixels_decodes(kind: Any) -> None:
    """Whatever was damaged in its middle; without the check, a JPEG or WebP may pass and raise where it is read."""
    data, rng, found = encode(photo(1), kind), np.random.default_rng(3), {True: 0, False: 0}
    for _ in range(30):
        damaged = bytearray(data)
        damaged[rng.integers(len(data) // 20, len(data) - 20)] ^= 0xFF
        damaged[rng.integers(100, 700)] ^= 0x55
        try:
            whole = is_whole(bytes(damaged), probe(bytes(damaged)).format, check_pixels=True)
        except UndecodableImage:
            continue
        found[whole] += 1
        if whole:
            decode_rgb(bytes(damaged))
    assert found[False]


def test_a_cut_file_with_a_whole_thumbnail_is_not_whole() -> None:
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9".encode("latin-1")
    data = encode(photo(2), exif=exif)
    assert is_whole(data, "JPEG")
    assert not is_whole(truncated(data), "JPEG")


def test_a_jpeg_that_lacks_only_its_end_marker_counts_as_its_pixels_do() -> None:
    data = jpeg(3)[:-2]
    try:
        Image.open(io.BytesIO(data)).load()
        decodes = True
    except OSError:
        decodes = False
    assert is_whole(data, "JPEG") is decodes
    assert is_whole(jpeg(3) + b"\0" * 512, "JPEG")  # padding after the end is common


@pytest.mark.parametrize(
    "data", [b"", HTML, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP", b"GIF89a", b"BMxx", b"II*\0"]
)
def test_not_an_image(data: Any) -> None:
    with pytest.raises(UndecodableImage):
        probe(data)
    with pytest.raises(UndecodableImage):
        decode_rgb(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_size_and_pixels_are_as_a_viewer_sees_them(kind: Any, orientation: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(4, (320, 288)), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert probe(data)[1:] == upright.size == ((288, 320) if orientation > 4 else (320, 288))
    assert psnr(decode_rgb(data), upright.convert("RGB")) > 60


def test_every_mode_decodes_to_rgb() -> None:
    source = photo(5)
    grey = source.convert("L")
    alpha = source.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(source.size))
    on_white = Image.new("RGBA", source.size, "white")
    on_white.alpha_composite(alpha)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    cases = {
        "grey": (encode(grey), grey),
        "grey+alpha": (encode(alpha.convert("LA"), "PNG"), on_white.convert("L")),
        "RGBA": (encode(alpha, "PNG"), on_white),
        "16 bit": (encode(deep, "PNG"), grey),
        "16 bit TIFF": (encode(deep, "TIFF"), grey),
        "bits": (encode(grey.convert("1"), "PNG"), grey.convert("1")),
        "palette": (encode(source.quantize(), "PNG"), source.quantize()),
        "CMYK": (encode(source.convert("CMYK"), quality=95), source),
    }
    for name, (data, expected) in cases.items():
        image = decode_rgb(data)
        assert image.mode == "RGB", name
        assert psnr(image, expected.convert("RGB")) > (28 if name in ("CMYK", "grey") else 45), name


def test_transparent_palette_lies_on_white() -> None:
    image = Image.new("P", (300, 300), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    assert decode_rgb(encode(image, "PNG", transparency=0)).getpixel((9, 9)) == (255, 255, 255)
    assert decode_rgb(encode(image, "GIF", transparency=0)).getpixel((9, 9)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: Any) -> None:
    data = encode(photo(0), kind, save_all=True, append_images=[photo(1), photo(2)], lossless=True)
    assert psnr(decode_rgb(data), photo(0)) > 25 > psnr(decode_rgb(data), photo(1))


def test_a_bomb_is_known_by_its_header() -> None:
    data = bomb(20_000, 20_000)
    info = probe(data)
    assert info.width * info.height > MAX_PIXELS
    with pytest.raises(UndecodableImage, match="DecompressionBomb"):
        decode_rgb(data)


@pytest.mark.parametrize("size", [(2**32 - 1, 1), (1, 2**31), (2**32 - 1, 0)])
def test_a_claim_beyond_what_columns_of_sizes_hold_is_too_large(size: tuple[int, int]) -> None:
    """They are int32: a width beyond would end the build, and the run, that counts such a picture as rejected."""
    with pytest.raises(ImageTooLarge):
        probe(bomb(*size))


@pytest.mark.parametrize("kind", ["GIF", "JPEG"])
def test_a_bomb_that_pillow_refuses_to_open_is_too_large_and_not_broken(kind: Any) -> None:
    """Where the header is read by Pillow, which has a limit of its own: a GIF, a JPEG with EXIF."""
    data = bytearray(jpeg(1, orientation=6) if kind == "JPEG" else encode(photo(1), "GIF"))
    at = data.index(b"\xff\xc0") + 5 if kind == "JPEG" else 6
    data[at : at + 4] = b"\x70" * 4  # 28,784 pixels each way
    with pytest.raises(ImageTooLarge):
        probe(bytes(data))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("frame", [n for n in range(0xC0, 0xD0) if n not in (0xC4, 0xC8, 0xCC)])
@pytest.mark.parametrize("orientation", [None, 6])
def test_a_jpeg_of_a_kind_that_nothing_here_reads_is_unsupported(
    frame: int, bits: int, orientation: int | None
) -> None:
    """Lossless, hierarchical, 12 bits: Pillow says so while it decodes, too late for the gate."""
    progressive = frame in (0xC2, 0xCA)
    data = bytearray(jpeg(1, (64, 48), orientation=orientation))
    if progressive:
        data = bytearray(encode(photo(1, (64, 48)), "JPEG", progressive=True))
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[at + 1], data[at + 4] = frame, bits
    if frame in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and bits == 8:
        assert probe(bytes(data)).format == "JPEG"
        decode_rgb(bytes(data))
        return
    with pytest.raises(UnsupportedImage):
        probe(bytes(data))
    with pytest.raises(UndecodableImage):
        decode_rgb(bytes(data))


def test_a_float_image_is_not_whole() -> None:
    """It has no defined range, so no pixels can be made of it."""
    data = encode(Image.fromarray(np.ones((300, 300), np.float32)), "TIFF")
    assert probe(data)[1:] == (300, 300) and not is_whole(data, "TIFF")


def test_the_pixel_limit_is_where_pillow_would_warn() -> None:
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(encode(photo(0).resize((400, 300)), "TIFF"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as images.py has it, which pytest resets
def test_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(6)
    for data in (*ENCODED.values(), jpeg(7, orientation=6)):
        for _ in range(40):
            damaged = bytearray(data)
            for at in rng.integers(0, len(data) if rng.random() < 0.5 else 200, 8):
                damaged[at] = rng.integers(256)
            try:
                info = probe(bytes(damaged))
                is_whole(bytes(damaged), info.format)
                if info.width * info.height <= 10**6:
                    decode_rgb(bytes(damaged))
            except UndecodableImage:
                pass


@pytest.mark.parametrize(
    "read", [probe, decode_rgb, lambda data: is_whole(data, "JPEG"), lambda data: shrink(data, 64)]
)
def test_want_of_memory_is_no_fault_of_the_image(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    for method in ("load", "getexif"):
        monkeypatch.setattr(f"PIL.ImageFile.ImageFile.{method}", fail, raising=False)
    with pytest.raises(MemoryError):
        read(jpeg(1, orientation=6)[:-2])


def test_decode_with_a_shorter_edge_never_goes_below_it() -> None:
    data = jpeg(1, (1300, 1100))
    assert decode_rgb(data, shorter_edge=256).size == (325, 275)
    assert decode_rgb(data, shorter_edge=512).size == (650, 550)
    assert decode_rgb(data, shorter_edge=551).size == (1300, 1100)


@pytest.mark.parametrize("orientation", [None, 6])
def test_shrink(orientation: Any) -> None:
    data = jpeg(1, (1300, 1100), orientation=orientation)
    small = shrink(data, 512)
    info = probe(small)
    assert info.format == "JPEG" and min(info.width, info.height) == 512
    assert (info.height > info.width) is (orientation == 6)
    full = decode_rgb(data).resize((info.width, info.height), Image.Resampling.BICUBIC)
    assert psnr(decode_rgb(small), full) > 36


@pytest.mark.parametrize(("data", "kind"), [(png(2, (600, 600)), "PNG"), (webp(2, (600, 600)), "WEBP")])
def test_lossless_shrink_adds_no_loss(data: Any, kind: Any) -> None:
    small = shrink(data, 300, lossless=True)
    assert sniff(small) == kind
    assert psnr(decode_rgb(small), decode_rgb(data).resize((300, 300), Image.Resampling.BICUBIC)) > 60
    assert sniff(shrink(data, 300)) == "JPEG"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("lossless", [False, True])
def test_a_small_copy_keeps_the_colour_profile_where_it_is_not_applied(kind: Any, lossless: Any) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    small = shrink(encode(photo(1, (640, 512)), kind, icc_profile=profile), 256, lossless, "ignore")
    assert Image.open(io.BytesIO(small)).info.get("icc_profile") == profile
