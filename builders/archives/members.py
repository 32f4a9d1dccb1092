"""Archives as streams of members, read in place: tar, tgz and zip behind `iter_members`.

Nothing is unpacked, memory is flat, and a member is only read when asked for. Reading the headers here, instead of with `tarfile` and
`zipfile`, takes 3 µs a member where those take 18 and 14, lets a range of a big zip be read without listing the rest in memory, and
works on any file object that can seek, remote ones included. A member that is damaged (bad CRC, odd compression, absurd size) reads
as zero bytes, which the gate calls undecodable; an archive that breaks off raises ArchiveError after its last whole member.
"""

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

from builders.archives.zips import iter_zip
from builders.core.errors import ArchiveError

_MAX_EXTENSION = 2**20  # bytes of a tar header that only carries a long name
_SEEK_FROM = 4096  # bytes; less is read faster than skipped
_BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
MAX_MEMBER_SIZE = 256 * 2**20  # bytes; no image is that large, and a header may claim anything


class Member(NamedTuple):
    """A regular file of an archive; `read` works until the next member is asked for."""

    name: str
    read: Callable[[], bytes]


def iter_members(file: IO[bytes], index: int = 0, count: int = 1) -> Iterator[Member]:
    """Members in the archive's order, hidden ones left out. Of a zip, the `index`-th of `count` ranges."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    members: Iterator[Member]
    if magic[:2] == b"PK":
        members = (
            Member(name.removeprefix("./"), read)
            for name, read in iter_zip(file, index, count, MAX_MEMBER_SIZE)
        )
    else:
        unpacked: Any = gzip.GzipFile(fileobj=file) if magic[:2] == b"\x1f\x8b" else file
        members = _iter_tar(unpacked)
    try:
        for member in members:
            base = basename(member.name)
            if base and not base.startswith((".", "__")):
                yield member
    except (struct.error, ValueError, OverflowError) as error:  # of a damaged header
        raise ArchiveError(f"{type(error).__name__}: {error}") from error


def basename(name: str) -> str:
    return name.rpartition("/")[2]


def stem(name: str) -> str:
    """The base name without its extension: what annotations and images are matched by."""
    base = basename(name)
    return base.rpartition(".")[0] or base


def group_by_key(members: Iterable[Member]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """WebDataset samples: adjacent members of one name up to the first dot, as (name, {lower-case extension: bytes}).

    An extension that comes a second time begins a second sample of the same name.
    """
    name, parts = "", dict[str, bytes]()
    for member in members:
        extension = basename(member.name).partition(".")[2]
        key = member.name.removesuffix(extension).removesuffix(".")
        extension = extension.lower()
        if parts and (key != name or extension in parts):
            yield name, parts
            parts = {}
        name = key
        parts[extension] = member.read()
    if parts:
        yield name, parts


def read_facts(parts: dict[str, bytes]) -> dict[str, Any]:
    """The sample's .json as a dict; empty where it is missing or broken, which costs no more than what it told."""
    try:
        facts = json.loads(parts.get("json", b"{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


# --- tar: POSIX.1-1988 (ustar), pax and GNU long names ------------------------------------------------------------------------------


def _iter_tar(file: IO[bytes]) -> Iterator[Member]:
    name, size = "", None  # what an extension header says of the next member
    while header := _read(file, 512):
        if len(header) < 512:
            raise ArchiveError("tar header cut short")
        if not header[0]:
            return
        if header[257:262] != b"ustar" and not _checksum_holds(header):
            raise ArchiveError("not a tar header")
        kind, length = header[156:157], _number(header[124:136])
        if kind in b"Lx":
            if length > _MAX_EXTENSION:
                raise ArchiveError("a member name of absurd length")
            body = _exactly(file, length)
            _skip(file, -length % 512)
            if kind == b"L":
                name = _text(body)
            else:
                pax = _pax(body)
                name, size = pax.get("path", name), int(pax["size"]) if "size" in pax else size
            continue
        length = length if size is None else size
        remaining = length

        def read(length: int = length) -> bytes:
            nonlocal remaining
            remaining = 0
            if length > MAX_MEMBER_SIZE:
                _skip(file, length)
                return b""
            return _exactly(file, length)

        if kind in b"0\0007":
            yield Member((name or _ustar_name(header)).removeprefix("./"), read)
        _skip(file, remaining + -length % 512)
        name, size = "", None


def _ustar_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU base 256
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise ArchiveError("not a tar header") from None


def _checksum_holds(header: bytes) -> bool:
    return sum(header) - sum(header[148:156]) + 8 * 32 == _number(header[148:156])


def _pax(body: bytes) -> dict[str, str]:
    records = {}
    while body:
        length = int(body[: body.index(b" ")])
        key, _, value = body[body.index(b" ") + 1 : length - 1].partition(b"=")
        records[key.decode()] = value.decode("utf-8", "surrogateescape")
        body = body[length:]
    return records


def _read(file: IO[bytes], length: int) -> bytes:
    try:
        return file.read(length)
    except _BROKEN_GZIP as error:
        raise ArchiveError(f"compressed data: {error}") from error


def _exactly(file: IO[bytes], length: int) -> bytes:
    data = _read(file, length)
    if len(data) < length:
        raise ArchiveError(f"cut short inside a member, {length - len(data):,} bytes are missing")
    return data


def _skip(file: IO[bytes], length: int) -> None:
    if 0 < length <= _SEEK_FROM:
        _exactly(file, length)
    elif length:
        try:
            file.seek(length - 1, os.SEEK_CUR)
        except _BROKEN_GZIP as error:
            raise ArchiveError(f"compressed data: {error}") from error
        _exactly(file, 1)  # a seek beyond the end would pass unnoticed
