"""Tar members from any file that can seek: POSIX.1-1988 (ustar), pax, GNU long names and sizes, hard and symbolic links.

GNU tar is the judge of it, with two differences. It tells nothing of a file that ends before its end mark, which here is damage: a tar
cut short between two members looks no other way. And it stops at the first end mark, where here the next tar is read on, if one follows.
"""

import functools
import posixpath
import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from builders.archives.member import Member, NoContent
from builders.archives.positioned_file import PositionedFile
from builders.core.errors import ArchiveError

BLOCK = 512
# Bytes of zeros: the end mark and one record of padding, as every common writer has it.
LONGEST_END = 1024 + 10_240
_LONGEST_RECORD = 2**20  # bytes: `tar -b 2048`
_MAX_EXTENSION = 2**20  # bytes of a header that only carries a long name
_MAX_SIZE = 2**62  # bytes
_LONGEST_HOLE = 2**28  # bytes of zeros that are read in search of another member
# Of a header: name, bytes of content, checksum, kind, magic, folder.
_FIELDS = struct.Struct("100s24x12s12x8sc100x6s82x155s12x")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,7}) ")
# Kinds of members. Sets: whether bytes are in bytes takes longer than all else that is asked of a header.
_FILES, _LINKS, _PAX, _EXTENSIONS = {b"0", b"\0", b"7"}, {b"1", b"2"}, {b"x", b"X"}, {b"x", b"X", b"L", b"K"}
_NO_CONTENT = {b"5", b"g", b"V", b"D", b"N"}  # folders, global headers, volume labels, lists of folders


# One member, its extension headers applied: its name, kind, what it links to, offset and bytes of its content in the archive, whether that
# is sparse. A plain tuple: there are millions.
_Header = tuple[str, bytes, str, int, int, bool]


def begins_tar(block: bytes) -> bool:
    """Whether a block of 512 bytes is a whole header, or zeros."""
    try:
        return not any(block) or bool(_parse(block, {}))
    except ArchiveError:
        return False


def iter_tar(file: IO[bytes], max_size: int) -> Iterator[Member]:
    """Files and links in the archive's order; folders are passed over, contents over `max_size` bytes read as nothing.

    Raises ArchiveError at damage: a header whose checksum is wrong, an end that comes too early, zeros where data should be.
    """
    archive = PositionedFile(file)
    targets: _Targets | None = None
    for header in _headers(archive):
        name, kind, _, place, length, is_sparse = header
        if is_sparse:
            yield Member(name, NoContent, "a sparse member: pack the tar without --sparse")
        elif kind in _FILES:
            if targets is not None:
                targets.add(header)
            yield Member(name, functools.partial(archive.content, place, length, max_size))
        elif kind in _LINKS:
            targets = targets or _Targets(archive, place)
            yield targets.resolve(header, max_size)
        elif kind not in _NO_CONTENT:
            yield Member(name, NoContent, f"a member of kind {kind!r}, which is no file")


class _Targets:
    """Remembers where the contents of the members lie that links may name. Made at the first link, so that others cost no memory."""

    def __init__(self, archive: PositionedFile, stop: int) -> None:
        self._archive = archive
        self._places: dict[str, tuple[int, int]] = {}
        if archive.is_packed:
            return
        archive.go_to(0)
        for header in _headers(archive):
            _, kind, _, place, _, is_sparse = header
            if place >= stop:
                break
            if kind in _FILES and not is_sparse:
                self.add(header)

    def add(self, header: _Header) -> None:
        self._places[header[0]] = header[3], header[4]

    def resolve(self, link: _Header, max_size: int) -> Member:
        """The link as the file that it leads to, which must come before it."""
        name, kind, target, *_ = link
        if self._archive.is_packed:
            return Member(
                name,
                NoContent,
                "a link inside a compressed tar: unpack it, or pack it with --hard-dereference",
            )
        found = _plain(target)
        if kind == b"2":
            found = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if found not in self._places:
            return Member(name, NoContent, f"a link to {target}, which is not before it in the archive")
        self._places[name] = place = self._places[found]
        return Member(name, functools.partial(self._archive.content, *place, max_size))


def _headers(archive: PositionedFile) -> Iterator[_Header]:
    """All members from here on. Wherever the caller has read meanwhile, the next one is looked for behind the last one's content."""
    hole, end = 0, archive.at
    extensions: dict[str, str] = {}
    while True:
        block = archive.read_at(end, BLOCK)
        if not any(block):
            zeros, block = _past_zeros(archive, len(block))
            extensions = {}
            if not _is_padding(zeros, archive.at - len(block)):
                hole = max(hole, zeros)
            if not block:
                break
        name, kind, link, length, is_sparse = _parse(block, extensions)
        while kind == b"S" and block[-30 if block[257:262] == b"ustar" else -8]:  # its map goes on
            block = archive.exactly(BLOCK)
        place = archive.at
        if kind in _EXTENSIONS:
            extensions |= _extension(archive, kind, length)
        else:
            yield name, kind, link, place, length, is_sparse
            if extensions and kind != b"g":
                extensions = {}
        end = place + length + -length % BLOCK
    if hole:
        raise ArchiveError(f"{hole:,} bytes of zeros at its end: a download that was not finished")


def _is_padding(zeros: int, end: int) -> bool:
    """Whether zeros up to offset `end` are an end mark filled up to a whole record, of 10 KiB or of a power of two up to 1 MiB.

    A download that was not finished may have its length already, and zeros where the rest should be.
    """
    record = min(_LONGEST_RECORD, end & -end)
    return zeros <= max(LONGEST_END, 1024 + record)


def _past_zeros(archive: PositionedFile, zeros: int) -> tuple[int, bytes]:
    """The first block behind a run of zeros: bytes of zeros before it, the block; it is empty at the file's end."""
    if not zeros:
        raise ArchiveError("it ends without an end mark: empty, or cut short")
    while chunk := archive.read(2**16):
        if rest := chunk.lstrip(b"\0"):
            start = (len(chunk) - len(rest)) // BLOCK * BLOCK
            return zeros + start, archive.read_at(archive.at - len(chunk) + start, BLOCK)
        zeros += len(chunk)
        if zeros > _LONGEST_HOLE:
            raise ArchiveError(f"more than {_LONGEST_HOLE:,} bytes of zeros")
    return zeros, b""


def _parse(block: bytes, extensions: dict[str, str]) -> tuple[str, bytes, str, int, bool]:
    """Name, kind, what it links to, bytes of content, whether that is sparse."""
    if len(block) < BLOCK:
        raise ArchiveError("cut short inside a header")
    base, size, checksum, kind, magic, folder = _FIELDS.unpack(block)
    # The lower half of Adler-32 is the sum and 1, modulo 65521: ten times as fast as to add the bytes.
    if zlib.adler32(block) & 0xFFFF != _adler(checksum) and not _signed_sum_holds(block):
        raise ArchiveError("a header is damaged, or it is no tar: its checksum is wrong")
    name, link, is_sparse = _text(base), "", False
    length = 0 if kind == b"1" else _number(size)
    if folder[0] and magic == b"ustar\0":
        name = f"{_text(folder)}/{name}"
    if kind == b"0" and not extensions and length <= _MAX_SIZE and name[:1] != "." and name[-1:] != "/":
        return name, kind, link, length, is_sparse  # as nearly all are
    if extensions:
        if "size" in extensions and kind not in _EXTENSIONS and kind != b"1":
            length = _decimal(extensions["size"])
        name = extensions.get("GNU.sparse.name") or extensions.get("path") or name
        link = extensions.get("linkpath", "")
        is_sparse = any(key.startswith("GNU.sparse.") for key in extensions)
    if length > _MAX_SIZE:
        raise ArchiveError("a member of absurd length")
    if name.endswith("/") and kind in (b"0", b"\0"):  # a folder, before there was a kind for it
        kind = b"5"
    if kind in _LINKS:
        link = link or _text(block[157:257])
    return _plain(name) if name.startswith("./") else name, kind, link, length, is_sparse or kind == b"S"


def _extension(archive: PositionedFile, kind: bytes, length: int) -> dict[str, str]:
    """What an extension header says of the next member: its name, the name it links to, its size, its sparseness."""
    if length > _MAX_EXTENSION:
        raise ArchiveError("a member name of absurd length")
    body = archive.exactly(length)
    if kind in _PAX:
        return _pax(body)
    return {"path" if kind == b"L" else "linkpath": _text(body)}


def _pax(body: bytes) -> dict[str, str]:
    records, at = {}, 0
    while at < len(body):
        match = _PAX_LENGTH.match(body, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n":
            if not any(body[at:]):  # padding, as some writers have it
                break
            raise ArchiveError("a pax header is damaged")
        key, _, value = body[match.end() : end - 1].partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at = end
    return records


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ArchiveError(f"a pax header is damaged: size={text[:30]!r}")
    return int(text)


def _number(field: bytes) -> int:
    digits = field.rstrip(b"\0 ")
    if not digits.isdigit():  # which Python would take with a sign, a prefix or underscores
        if field[0] == 0x80:  # GNU base 256; 0xff begins a negative number
            return int.from_bytes(field[1:], "big")
        digits = field.partition(b"\0")[0].strip(b" ") or b"0"
    try:
        return int(digits if digits.isdigit() else b"", 8)
    except ValueError:
        raise ArchiveError("a header is damaged: its size is no number") from None


def _signed_sum_holds(block: bytes) -> bool:
    """Whether the sum of the bytes as signed numbers is the one that is written, as old Sun tars have it."""
    return sum(block) - 256 * sum(byte > 127 for byte in block[:148] + block[156:]) == _sum(block[148:156])


@functools.lru_cache(2**14)  # there are few sums
def _adler(field: bytes) -> int:
    """The lower half of a header's Adler-32 by its checksum field."""
    return (_sum(field) + 1) % 65521


def _sum(field: bytes) -> int:
    """The sum of a header's bytes by its checksum field, which itself counts as spaces there."""
    return _number(field) - 8 * 32 + sum(field)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _plain(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name
