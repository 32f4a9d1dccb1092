"""Zip directories and members from any file that can seek (APPNOTE.TXT 4.3, with zip64).

The number of entries comes from the last bytes, a range of them from one walk over the directory's raw bytes: `zipfile` would make an
object of each of a hundred thousand entries for every range.
"""

import functools
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from builders.core.errors import ArchiveError

# Signature, flags, method, crc, packed size, size, offset of the member.
_ENTRY = struct.Struct("<4s4x2H4x3L14xL")
_LENGTHS = struct.Struct("<3H")  # of name, extra fields and comment, 28 bytes into the entry
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")


class _Entry(NamedTuple):
    name: str
    raw_name: bytes
    encrypted: bool
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def count_zip(file: IO[bytes]) -> int:
    """Number of entries, folders included, from the last bytes alone."""
    return _zip_end(file)[0]


def zip_names(file: IO[bytes]) -> Iterator[str]:
    """Names of all entries."""
    count, length, offset = _zip_end(file)
    directory = _directory(file, length, offset)
    walk = _walk(directory, count, 0, count)
    return (_name(directory, at, _raw_name(directory, at, names)) for at, names, _ in walk)


def iter_zip(
    file: IO[bytes], index: int, count: int, max_size: int
) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name and reader of each file in the `index`-th of `count` ranges; what is damaged or over `max_size` bytes reads as nothing."""
    total, length, offset = _zip_end(file)
    directory = _directory(file, length, offset)
    for at, names, extras in _walk(directory, total, total * index // count, total * (index + 1) // count):
        entry = _entry(directory, at, names, extras)
        if not entry.name.endswith("/"):
            lies_before = entry.offset < offset  # the directory; what claims another place is damaged
            yield (
                entry.name,
                functools.partial(_read_entry, file, entry, max_size) if lies_before else bytes,
            )


def _read_entry(file: IO[bytes], entry: _Entry, max_size: int) -> bytes:
    if entry.encrypted or max(entry.packed, entry.size) > max_size:
        return b""
    file.seek(entry.offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        return b""
    name_length, extra_length = struct.unpack_from("<2H", header, 26)
    # No checksum covers a name: of two that differ one is damaged, and the picture would get its neighbour's caption.
    if file.read(name_length + extra_length)[:name_length] != entry.raw_name:
        return b""
    data = file.read(entry.packed if entry.method else min(entry.packed, entry.size))
    if entry.method == 8:
        try:
            data = zlib.decompressobj(-15).decompress(data, max(1, entry.size))  # 0 would mean all
        except zlib.error:
            return b""
    return data if entry.method in (0, 8) and zlib.crc32(data) == entry.crc else b""


def _directory(file: IO[bytes], length: int, offset: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _walk(directory: bytes, total: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Find where each of the entries from `start` to `stop` lies, and how long its name and extra fields are.

    Raises ArchiveError where the directory is too short for them, and where it goes on behind the last of all: what it says there would
    vanish.
    """
    at = 0
    for number in range(stop):
        if at + _ENTRY.size > len(directory):
            raise ArchiveError("zip directory is damaged")
        names, extras, comments = _LENGTHS.unpack_from(directory, at + 28)
        if number >= start:
            yield at, names, extras
        at += _ENTRY.size + names + extras + comments
    if stop == total and directory[at : at + 4] not in (b"", b"PK\5\5"):  # a signature
        raise ArchiveError(
            f"its directory holds more than the {total:,} entries that the end of the zip says"
        )


def _raw_name(directory: bytes, at: int, length: int) -> bytes:
    return directory[at + _ENTRY.size : at + _ENTRY.size + length]


def _name(directory: bytes, at: int, raw: bytes) -> str:
    is_utf8 = raw.isascii() or directory[at + 9] & 8  # bit 11 of the flags
    return raw.decode("utf-8" if is_utf8 else "cp437", "replace")


def _entry(directory: bytes, at: int, names: int, extras: int) -> _Entry:
    signature, flags, method, crc, packed, size, offset = _ENTRY.unpack_from(directory, at)
    if signature != b"PK\1\2":
        raise ArchiveError("zip directory is damaged")
    raw_name = _raw_name(directory, at, names)
    if 0xFFFFFFFF in (packed, size, offset):
        more = directory[at + _ENTRY.size + names : at + _ENTRY.size + names + extras]
        size, packed, offset = _zip64(more, size, packed, offset)
    return _Entry(
        _name(directory, at, raw_name), raw_name, bool(flags & 1), method, crc, packed, size, offset
    )


def _zip64(extras: bytes, *values: int) -> list[int]:
    """The 64-bit values that replace those which are all ones, in their order."""
    while len(extras) >= 4:
        kind, length = struct.unpack_from("<2H", extras)
        if kind == 1:
            large = iter(struct.unpack_from(f"<{length // 8}Q", extras, 4))
            return [next(large, value) if value == 0xFFFFFFFF else value for value in values]
        extras = extras[4 + length :]
    return list(values)


def _zip_end(file: IO[bytes]) -> tuple[int, int, int]:
    """Number of entries, and size and offset of the directory."""
    end = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, end - 66_000))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ArchiveError("zip without a directory: cut short")
    try:
        _, _, _, _, count, length, offset, _ = _END.unpack_from(tail, at)
        if count == 0xFFFF or 0xFFFFFFFF in (length, offset):
            locator = at - 20
            if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
                (at64,) = struct.unpack_from("<Q", tail, locator + 8)
                _, _, _, _, _, _, _, count, length, offset = _END64.unpack_from(tail, at64 - start)
    except (struct.error, OverflowError) as error:
        raise ArchiveError(f"the end of the zip is damaged: {error}") from error
    if offset + length > end or count * _ENTRY.size > length:
        raise ArchiveError("the end of the zip is damaged: its directory does not fit into the file")
    # The end comes behind the directory, or a zip64's own end or a signature does; else two places claim to be the directory, or
    # bytes lie before the zip.
    behind = offset + length - start
    if behind != at and (behind < 0 or tail[behind : behind + 4] not in (b"PK\6\6", b"PK\5\5")):
        raise ArchiveError("the directory of the zip is not where its end says: write the zip anew")
    return count, length, offset
