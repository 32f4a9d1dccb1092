"""Real photographs for the raw trees, cut out of scikit-image's, in any format and with any damage."""

import functools
import importlib.util
import io
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

HTML = b"<!doctype html><html><body>403 Forbidden</body></html>"


@functools.cache
def _photograph(name: str) -> Image.Image:
    found = importlib.util.find_spec("skimage")
    assert found is not None and found.submodule_search_locations
    return Image.open(Path(found.submodule_search_locations[0]) / "data" / name).convert("RGB")


def photo(number: int = 0, size: tuple[int, int] = (320, 288)) -> Image.Image:
    """A photograph of the given size; each number is a different cut."""
    source = _photograph(
        ("astronaut.png", "coffee.png", "rocket.jpg", "retina.jpg", "chelsea.png")[number % 5]
    )
    inset = 3 * (number // 5 % 8)
    return source.crop((inset, inset, source.width - inset, source.height - inset)).resize(size)


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def jpeg(
    number: int = 0, size: tuple[int, int] = (320, 288), mode: str = "RGB", orientation: int | None = None
) -> bytes:
    options: dict[str, Any] = {}
    if orientation is not None:
        options["exif"] = exif = Image.Exif()
        exif[0x0112] = orientation
    return encode(photo(number, size).convert(mode), quality=85, **options)


def png(number: int = 0, size: tuple[int, int] = (320, 288)) -> bytes:
    return encode(photo(number, size), "PNG", compress_level=1)


def webp(number: int = 0, size: tuple[int, int] = (320, 288)) -> bytes:
    return encode(photo(number, size), "WEBP", lossless=True, method=0)


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def bomb(width: int, height: int) -> bytes:
    """A valid PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
