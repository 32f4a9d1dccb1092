"""Zip directories and members from any file that can seek (APPNOTE.TXT 4.3, with zip64).

The number of entries comes from the last bytes, a range of them from one walk over the directory's raw bytes: `zipfile` would make an
object of each of a hundred thousand entries for every range.
"""

import functools
import os
import struct
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from builders.archives.member import Member
from builders.core.errors import ArchiveError

# Signature, flags, method, crc, packed size, size, offset of the member.
_ENTRY = struct.Struct("<4s4x2H4x3L14xL")
_LOCAL = struct.Struct("<4s22x2H")  # before the member: signature, lengths of name and extra fields
_LENGTHS = struct.Struct("<3H")  # of name, extra fields and comment, 28 bytes into the entry
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4s4xQL")
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


class _End(NamedTuple):
    """What the last bytes say: number of entries, bytes of the directory and where it lies, and how many bytes lie before the zip."""

    entries: int
    length: int
    offset: int
    before: int


def is_zip(file: IO[bytes]) -> bool:
    """Whether the file ends as a zip does, to the byte, whatever it begins with: a program that unpacks it, for example."""
    _, tail = _tail(file)
    at = tail.rfind(b"PK\5\6")
    return 0 <= at == len(tail) - _END.size - int.from_bytes(tail[at + 20 : at + 22], "little")


def count_zip(file: IO[bytes]) -> int:
    """Number of entries, folders included, from the last bytes alone."""
    return _zip_end(file).entries


def zip_names(file: IO[bytes]) -> Iterator[str]:
    """Names of all entries."""
    end = _zip_end(file)
    directory = _directory(file, end)
    walk = _walk(directory, end.entries, 0, end.entries)
    return (_name(directory, at, _raw_name(directory, at, names)) for at, names, _ in walk)


def iter_zip(file: IO[bytes], index: int, count: int, max_size: int) -> Iterator[Member]:
    """The files in the `index`-th of `count` ranges; what is damaged or over `max_size` bytes reads as nothing."""
    end = _zip_end(file)
    directory = _directory(file, end)
    start, stop = (end.entries * number // count for number in (index, index + 1))
    for at, names, extras in _walk(directory, end.entries, start, stop):
        entry = _entry(directory, at, names, extras)
        if not entry.name.endswith("/"):
            lies_before = entry.offset < end.offset  # the directory; what claims another place is damaged
            read = functools.partial(_read_entry, file, entry, end.before, max_size) if lies_before else bytes
            yield Member(entry.name.removeprefix("./"), read)


def _read_entry(file: IO[bytes], entry: _Entry, before: int, max_size: int) -> bytes:
    if entry.encrypted or max(entry.packed, entry.size) > max_size:
        return b""
    file.seek(before + entry.offset)
    header = file.read(_LOCAL.size + len(entry.raw_name))
    if len(header) < _LOCAL.size:
        return b""
    signature, name_length, extra_length = _LOCAL.unpack_from(header)
    # No checksum covers a name: of two that differ one is damaged, and the picture would get its neighbour's caption.
    has_name = header[_LOCAL.size :] == entry.raw_name and name_length == len(entry.raw_name)
    if signature != b"PK\3\4" or not has_name:
        return b""
    file.read(extra_length)
    data = file.read(entry.packed if entry.method else min(entry.packed, entry.size))
    if entry.method == 8:
        try:
            data = zlib.decompressobj(-15).decompress(data, max(1, entry.size))  # 0 would mean all
        except zlib.error:
            return b""
    return data if entry.method in (0, 8) and zlib.crc32(data) == entry.crc else b""


def _directory(file: IO[bytes], end: _End) -> bytes:
    file.seek(end.offset + end.before)
    return file.read(end.length)


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


def _tail(file: IO[bytes]) -> tuple[int, bytes]:
    """The bytes in which an end may stand, and where they begin."""
    start = file.seek(max(0, file.seek(0, os.SEEK_END) - 66_000))
    return start, file.read()


def _zip_end(file: IO[bytes]) -> _End:
    start, tail = _tail(file)
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise ArchiveError("zip without a directory: cut short")
    try:
        _, _, _, _, count, length, offset, _ = _END.unpack_from(tail, at)
        locator = at - _LOCATOR.size
        if locator >= 0 and tail.startswith(b"PK\6\7", locator):
            _, place, _ = _LOCATOR.unpack_from(tail, locator)
            # Where bytes lie before the zip, it is not there that the larger end is, but where it is written.
            for at64 in (place - start, locator - _END64.size):
                if at64 >= 0 and tail.startswith(b"PK\6\6", at64):
                    at, (*_, count, length, offset) = at64, _END64.unpack_from(tail, at64)
                    break
    except struct.error as error:
        raise ArchiveError(f"the end of the zip is damaged: {error}") from error
    # The end, or before it a signature, comes behind the directory.
    before = start + at - offset - length
    behind = offset + length - start
    if behind >= 0 and tail[behind : behind + 4] == b"PK\5\5":
        before = 0
    if before < 0 or count * _ENTRY.size > length:
        raise ArchiveError("the end of the zip is damaged: its directory does not fit into the file")
    if before:
        file.seek(0)
        if file.read(2) == b"PK":  # bytes in its midst, or a zip before the zip, whose members would vanish
            raise ArchiveError("the directory of the zip is not where its end says: write the zip anew")
    return _End(count, length, offset, before)
