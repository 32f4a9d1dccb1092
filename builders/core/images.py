"""Image bytes: what they are, whether they are whole, their pixels, and a smaller copy. Pure functions, nothing is cached.

The gate reads headers only (about 5 µs for a JPEG): format by magic bytes, size after EXIF rotation, and the format's trailer, which a
truncated file lacks. Pixels are decoded only where the trailer is missing, to tell a sloppy encoder from a lost tail.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

__all__ = [
    "MAX_PIXELS",
    "ImageInfo",
    "ImageTooLarge",
    "UndecodableImage",
    "decode_rgb",
    "is_whole",
    "probe",
    "shrink",
    "sniff",
]

MAX_PIXELS = (
    89_478_485  # Pillow's own limit: what passes the gate never draws a DecompressionBombWarning later
)
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")

# Pillow warns of broken metadata and of large images; the gate has its own say on both. Not catch_warnings: that is not thread-safe.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UndecodableImage(ValueError):
    """Bytes that no decoder of ours turns into pixels."""


class ImageTooLarge(UndecodableImage):
    """More pixels than Pillow agrees to open, twice MAX_PIXELS."""


class ImageInfo(NamedTuple):
    """What the header says. `width` and `height` are as a viewer sees them, after EXIF rotation."""

    format: str
    width: int
    height: int


def sniff(data: bytes) -> str | None:
    """The format by magic bytes, never by name: one of JPEG PNG WEBP GIF BMP TIFF, or None."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if data[:2] == b"BM" and data[14:18] in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"):
        return "BMP"
    return None


def probe(data: bytes) -> ImageInfo:
    """Format and size from the header. Raises UndecodableImage where there is none to read."""
    kind = sniff(data)
    try:
        if kind == "JPEG" and (size := _jpeg_size(data)):
            return ImageInfo("JPEG", *size)
        if kind == "PNG" and b"eXIf" not in data and b"Raw profile type exif" not in data:
            return ImageInfo("PNG", *struct.unpack(">II", data[16:24]))
    except struct.error:
        raise UndecodableImage(f"{kind} header cut short") from None
    with _pillow_errors():
        image = _open(data)
        width, height = image.size
        if (
            image.format != "TIFF" and image.getexif().get(_ORIENTATION) in _SIDEWAYS
        ):  # Pillow turns TIFF by itself
            width, height = height, width
        return ImageInfo(str(image.format), width, height)


def is_whole(data: bytes, kind: str) -> bool:
    """False for a truncated file: its trailer is missing and its pixels do not decode."""
    if kind == "JPEG":
        # An embedded thumbnail ends with FFD9 too, but lies before the frame header; FFD9 cannot occur inside entropy-coded data.
        whole = data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9") > _jpeg_frame(data)
    elif kind == "PNG":
        whole = data.rfind(b"IEND", max(0, len(data) - 64)) >= 0
    elif kind == "WEBP":
        whole = len(data) >= 8 + int.from_bytes(data[4:8], "little")
    elif kind == "GIF":
        whole = data[-1:] == b";"
    else:
        whole = False
    if whole:
        return True
    try:
        decode_rgb(data)
    except UndecodableImage:
        return False
    return True


def decode_rgb(data: bytes, shorter_edge: int | None = None) -> Image.Image:
    """The first frame as RGB, upright. Transparency lies on white, 16-bit greys are scaled to 8 bits.

    With `shorter_edge`, a JPEG may come out smaller by 2, 4 or 8 (scaled in the DCT, much faster), never under that many pixels.
    Raises UndecodableImage.
    """
    with _pillow_errors():
        image = _open(data)
        if shorter_edge is not None:
            _draft(image, shorter_edge)
        image.load()
        return _flatten(ImageOps.exif_transpose(image))


def shrink(data: bytes, shorter_edge: int, lossless: bool = False) -> bytes:
    """A copy whose shorter edge has `shorter_edge` pixels: upright RGB, bicubic, JPEG of quality 95.

    With `lossless`, sources that are not JPEG are stored losslessly (PNG as PNG, the others as WebP), so that they suffer no second
    lossy generation. The colour profile is kept.
    """
    image = decode_rgb(data, shorter_edge)
    scale = shorter_edge / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.BICUBIC)
    out, profile = io.BytesIO(), image.info.get("icc_profile")
    kind = sniff(data)
    if not lossless or kind == "JPEG":
        small.save(out, "JPEG", quality=95, icc_profile=profile)
    elif kind == "PNG":
        small.save(out, "PNG", icc_profile=profile)
    else:
        small.save(out, "WEBP", lossless=True, quality=50, method=2, icc_profile=profile or b"")
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


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
    if image.format == "JPEG" and scale >= 2:
        image.draft(None, (image.width // scale, image.height // scale))


def _flatten(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greys; Pillow's convert would clip them at 255
        greys = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) * 255 + 32767
        return Image.fromarray((greys // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UndecodableImage("a float image has no defined range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        canvas.info = image.info
        image = canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the frame header, or None where only Pillow can tell: an APP1 segment (EXIF, XMP) may hold a rotation."""
    frame = _jpeg_frame(data)
    if frame < 0 or data.find(b"\xff\xe1", 0, frame) >= 0:
        return None
    height, width = struct.unpack(">HH", data[frame + 5 : frame + 9])
    return width, height


def _jpeg_frame(data: bytes) -> int:
    """Offset of the frame header (any SOF), found by walking the segments; -1 where the walk leads nowhere."""
    at, last = 2, len(data) - 3
    while at < last and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return at
        elif marker in (0xD9, 0xDA):
            return -1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return -1
