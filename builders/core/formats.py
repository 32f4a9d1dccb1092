"""Image formats by their bytes alone: which one it is, where its parts lie, whether its end is there. Nothing is decoded."""

import struct
import zlib

DECODED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_PNG = b"\x89PNG\r\n\x1a\n"
_BMP_HEADERS = (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")
# The second bytes of frame headers that libjpeg-turbo reads: baseline, extended and progressive, the last two of arithmetic coding.
_FRAMES = b"\xc0\xc1\xc2\xc9\xca"
_ANY_FRAME = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
_END, _SCAN, _APP1, _FILL = 0xFFD9, 0xFFDA, 0xFFE1, 0xFFFF
# Markers of segments that tell nothing of the size: tables, restart interval, comment, APP0 and those behind APP1.
_OTHER = frozenset({0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE, *range(0xFFE0, 0xFFF0)}) - {_APP1}
_SEGMENT = struct.Struct(">HH")  # marker, length
_FRAME = struct.Struct(">xBxxBHH")  # marker, bits, height, width
# What people have in image folders, and no decoder here reads.
_OTHERS = {
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JPEG XR": (b"II\xbc\x01",),
    "PSD": (b"8BPS",),
    "OpenEXR": (b"\x76\x2f\x31\x01",),
    "SVG": (b"<svg",),
    "ICO": (b"\0\0\1\0",),
    "DDS": (b"DDS ",),
    "Radiance": (b"#?RADIANCE",),
    "PNM": tuple(b"P%d\n" % number for number in range(1, 8)),
}


def sniff(data: bytes) -> str | None:
    """The format by magic bytes, never by name: one of DECODED, or None."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == _PNG:
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if data[:2] == b"BM" and data[14:18] in _BMP_HEADERS:
        return "BMP"
    if data[4:8] == b"ftyp" and _brands(data) & {b"avif", b"avis"}:
        return "AVIF"
    return None


def unsupported(data: bytes) -> str | None:
    """The name of an image or video format that is known, and read by no decoder here; None for everything else."""
    for name, magics in _OTHERS.items():
        if data.startswith(magics):
            return name
    if data[4:8] == b"ftyp":
        is_heic = _brands(data) & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}
        return "HEIC" if is_heic else "MP4"
    if data.lstrip()[:5] == b"<?xml" and b"<svg" in data[:4096]:
        return "SVG"
    return None


def _brands(data: bytes) -> set[bytes]:
    """What an ISO media file says it is."""
    length = min(int.from_bytes(data[:4], "big"), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}


def has_end(data: bytes, kind: str) -> bool:
    """Whether the file's end is there, and of a PNG every byte. False where that takes a decoder to say."""
    if kind == "JPEG":
        # An embedded thumbnail ends with FFD9 too, but lies before the scan; FFD9 cannot occur inside entropy-coded data.
        return data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9") > jpeg_parts(data)[0]
    if kind == "PNG":
        return _png_is_intact(data)
    if kind == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def jpeg_parts(data: bytes) -> tuple[int, int, int]:
    """Offsets of the frame header (any SOF), of the first scan and of the last APP1 (EXIF or XMP, which may stand behind the frame).

    They are found by walking the segments; -1 for what is not there, or where the walk leads nowhere.
    """
    at, last, frame, app1 = 2, len(data) - 3, -1, -1
    while at < last:
        marker, length = _SEGMENT.unpack_from(data, at)
        if marker not in _OTHER:
            if marker == _SCAN:
                return frame, at, app1
            if marker == _FILL:
                at += 1
                continue
            if marker == _END or marker < 0xFF00:
                break
            if marker == _APP1:
                app1 = at
            elif frame < 0 and marker in _ANY_FRAME:
                frame = at
        at += 2 + length
    return frame, -1, app1


def unsupported_jpeg(data: bytes) -> str | None:
    """What a JPEG is that no decoder here reads, as scanners and cameras for medicine and X-rays write them; None for all others."""
    frame = jpeg_parts(data)[0]
    header = data[frame : frame + 5] if frame >= 0 else b""
    if len(header) < 5:
        return None
    if header[1] not in _FRAMES:
        return "a lossless or hierarchical JPEG"
    return f"a JPEG of {header[4]} bits" if header[4] in (12, 16) else None


def plain_size(data: bytes, kind: str) -> tuple[int, int] | None:
    """Width and height from the header, or None where only Pillow can tell: something in it may hold a rotation.

    Raises struct.error where the header is cut short.
    """
    if kind == "JPEG":
        frame, scan, app1 = jpeg_parts(data)
        if frame < 0 or scan < 0 or app1 >= 0:
            return None
        marker, bits, height, width = _FRAME.unpack_from(data, frame)
        return (width, height) if marker in _FRAMES and bits == 8 else None
    if kind == "PNG" and not any(
        sign in data for sign in (b"eXIf", b"Raw profile type exif", b"tiff:Orientation", b"XML:com")
    ):
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    return None


def _png_is_intact(data: bytes) -> bool:
    """Whether all chunks up to the last one are there with the checksums that they name. About 1 ms for a megabyte."""
    view, at = memoryview(data), len(_PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data) or zlib.crc32(view[at + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            return False
        if data[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False
