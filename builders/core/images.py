"""Image bytes: what they are, whether they are whole, their pixels, and a smaller copy. Pure functions, nothing is cached.

The gate reads headers only (about 6 µs for a JPEG): format by magic bytes, size after EXIF rotation, and the format's trailer, which a
truncated file lacks; of a PNG all checksums. Pixels are decoded only where that does not tell, or where `check_pixels` asks for it.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from builders.core.color import is_for_rgb, to_srgb
from builders.core.formats import DECODED, has_end, plain_size, sniff, unsupported, unsupported_jpeg

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "ImageTooLarge",
    "UndecodableImage",
    "UnsupportedImage",
    "decode_rgb",
    "is_whole",
    "orientation_of",
    "probe",
    "shrink",
    "sniff",
]

MAX_PIXELS = (
    89_478_485  # Pillow's own limit: what passes the gate never draws a DecompressionBombWarning later
)
_ORIENTATION = 0x0112
# EXIF's orientations, and what makes them upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pixels. The columns of sizes are int32, and one row beyond would end a whole build.
_LONGEST_CLAIM = 2**31 - 1
_LONGEST_EDGE = {"JPEG": 65_500, "WEBP": 16_383}  # pixels that a file of the format can hold

# Pillow warns of broken metadata and of large images; the gate has its own say on both. Not catch_warnings: that is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UndecodableImage(ValueError):
    """Bytes that no decoder of ours turns into pixels. reject: the reason, for the account."""

    reject = "undecodable"


class UnsupportedImage(UndecodableImage):
    """A picture in a format that is known, and that no decoder of ours reads."""

    reject = "unsupported_format"


class ImageTooLarge(UndecodableImage):
    """More pixels than MAX_PIXELS."""

    reject = "too_large"


class ImageInfo(NamedTuple):
    """What the header says. `width` and `height` are as a viewer sees them, after EXIF rotation."""

    format: str
    width: int
    height: int


def probe(data: bytes) -> ImageInfo:
    """Format and size from the header. Raises UndecodableImage where there is none to read, or one beyond what int32 holds."""
    info = _read_header(data)
    if max(info.width, info.height) > _LONGEST_CLAIM:
        raise ImageTooLarge(f"{info.width:,} x {info.height:,} pixels")
    return info


def _read_header(data: bytes) -> ImageInfo:
    kind = sniff(data)
    if kind is None and (other := unsupported(data)):
        raise UnsupportedImage(f"{other} is not decoded")
    try:
        if kind and (size := plain_size(data, kind)):
            return ImageInfo(kind, *size)
    except struct.error:
        raise UndecodableImage(f"{kind} header cut short") from None
    if kind == "JPEG" and (other := unsupported_jpeg(data)):
        raise UnsupportedImage(f"{other} is not decoded")
    with _pillow_errors():
        image = _open(data)
        width, height = image.size
        if isinstance(image, TiffImageFile) and _ORIENTATION in image.tag_v2:
            return ImageInfo("TIFF", width, height)  # Pillow has turned it already
        if kind == "PNG":
            image.load()  # what tells its orientation may lie behind the pixels
        if orientation_of(image) >= 5:
            width, height = height, width
        return ImageInfo(kind or str(image.format), width, height)


def is_whole(data: bytes, kind: str, check_pixels: bool = False) -> bool:
    """False for a truncated file, and a damaged PNG: its trailer is missing or a checksum wrong, and its pixels do not decode.

    With `check_pixels` no file is taken at its trailer's word: damage in the middle of a JPEG or WebP is found too, by decoding, of a
    JPEG at an eighth of its size (2 ms for 512 x 512, of a lossless WebP 19).
    """
    if not check_pixels and has_end(data, kind):
        return True
    try:
        decode_rgb(data, shorter_edge=1)
    except UndecodableImage:
        return False
    return True


def decode_rgb(data: bytes, shorter_edge: int | None = None, color_profile: str = "srgb") -> Image.Image:
    """The first frame as RGB, upright, in sRGB. Transparency lies on white, 16-bit greys are scaled to 8 bits.

    With `shorter_edge`, a JPEG may come out smaller by 2, 4 or 8 (scaled in the DCT, much faster), never under that many pixels.
    With `color_profile="ignore"` the numbers stay as they are stored, whatever colours they mean. Raises UndecodableImage.
    """
    if sniff(data) is None and (other := unsupported(data)):
        raise UnsupportedImage(f"{other} is not decoded")
    with _pillow_errors():
        image = _open(data)
        if shorter_edge is not None:
            _draft(image, shorter_edge)
        image.load()
        turn = _TURNS.get(orientation_of(image))
        upright = image if turn is None else image.transpose(turn)
        return _flatten(upright, color_profile)


def orientation_of(image: Image.Image) -> int:
    """How the pixels that Pillow gives must be turned, 1 to 8 as in EXIF: by EXIF, else by XMP, as Pillow's own readers have it.

    1 where its metadata is damaged: a viewer shows such a picture as it is stored.
    """
    try:
        value = image.getexif().get(_ORIENTATION)
    except (
        SyntaxError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
        OSError,
        AttributeError,
        struct.error,
    ):
        return 1
    return next((number for number in _TURNS if number == value), 1)


def shrink(data: bytes, shorter_edge: int, lossless: bool = False, color_profile: str = "srgb") -> bytes:
    """A copy whose shorter edge has `shorter_edge` pixels: upright RGB, bicubic, JPEG of quality 95.

    With `lossless`, sources that are not JPEG are stored losslessly (PNG as PNG, the others as WebP), so that they suffer no second
    lossy generation. What is too long for its format becomes a PNG. A colour profile is kept where it is not applied, if it is for RGB.
    """
    image = decode_rgb(data, shorter_edge, color_profile)
    scale = shorter_edge / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BICUBIC)
    out, profile, kind = io.BytesIO(), image.info.get("icc_profile"), sniff(data)
    kind = "JPEG" if not lossless or kind == "JPEG" else "PNG" if kind == "PNG" else "WEBP"
    if max(size) > _LONGEST_EDGE.get(kind, max(size)):
        kind = "PNG"
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True, "quality": 50, "method": 2}}
    with _pillow_errors():
        small.save(
            out, kind, icc_profile=profile or (b"" if kind == "WEBP" else None), **options.get(kind, {})
        )
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=DECODED)


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
    """Whatever Pillow raises on damaged bytes, of which there are a dozen types, becomes UndecodableImage.

    Not MemoryError: the image may be good, and must not be lost for want of memory.
    """
    try:
        yield
    except (UndecodableImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"DecompressionBombError: {error}") from error
    except Exception as error:
        raise UndecodableImage(f"{type(error).__name__}: {error}") from error


def _draft(image: Image.Image, shorter_edge: int) -> None:
    scale = min(image.size) // shorter_edge
    if isinstance(image, JpegImageFile) and scale >= 2:  # the first picture of an MPO is one too
        image.draft(None, (image.width // scale, image.height // scale))


def _flatten(image: Image.Image, color_profile: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit greys; Pillow's convert would clip them at 255
        greys = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) * 255 + 32767
        image = Image.fromarray((greys // 65535).astype(np.uint8))
        image.info["icc_profile"] = profile
    if image.mode == "F":
        raise UndecodableImage("a float image has no defined range")
    if image.has_transparency_data:
        image = image if image.mode == "LA" else image.convert("RGBA")
    elif image.mode in ("P", "YCbCr"):
        image = image.convert("RGB")
    stays = color_profile == "ignore" and image.mode.startswith("RGB") and is_for_rgb(profile)
    if color_profile == "srgb":
        image = to_srgb(image)
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.info = {"icc_profile": profile} if stays else {}
    return image
