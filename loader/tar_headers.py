"""The headers of a tar: USTAR, PAX and GNU, each member once, in time that its length bounds.

Python's own reader goes in circles over a negative size, and says nothing where a tar is cut or damaged.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

from loader.format import FormatError

BLOCK = 512
LONGEST_NAME = 1 << 20  # bytes of a PAX record or a GNU long name
REGULAR = b"0\x007"


class TarCut(FormatError):
    """The tar ends in the middle of a member, or without its end. What lay before has been given."""


def tar_members(file: BinaryIO, size: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the regular files of a tar of `size` bytes.

    Raises FormatError for a damaged header, TarCut where the file ends early.
    """
    at, name, longer = 0, "", None
    while True:
        if at + BLOCK > size:
            raise TarCut(f"it ends at {size} bytes, without the end of a tar")
        file.seek(at)
        header = file.read(BLOCK)
        if header.count(0) == BLOCK:
            return
        kind, length = header[156:157], _check(header, at)
        data, at = at + BLOCK, at + BLOCK
        if kind in b"xL":
            if length > LONGEST_NAME:
                raise FormatError(f"the header at {data - BLOCK} is {length} bytes long")
            text = file.read(length)
            if kind == b"L":
                name = os.fsdecode(text.rstrip(b"\0"))
            else:
                records = _pax(text)
                name = os.fsdecode(records.get(b"path", os.fsencode(name)))
                longer = _decimal(records[b"size"]) if b"size" in records else None
        elif kind not in b"gK":
            length = length if longer is None else longer
            if data + length > size:
                raise TarCut(f"its member at {data} has {length} bytes, of which {size - data} are there")
            if kind in REGULAR:
                yield name or _name(header), data, length
            name, longer = "", None
        at += -(-length // BLOCK) * BLOCK


def _check(header: bytes, at: int) -> int:
    """The size that a header claims, if its checksum is right."""
    found = sum(header) - sum(header[148:156]) + 8 * 32
    stated = header[148:156].replace(b"\0", b" ").split()
    if not stated or stated[0].lstrip(b"0") != b"%o" % found:
        raise FormatError(f"not a tar header at {at}")
    return _number(header[124:136], at)


def _number(field: bytes, at: int) -> int:
    if field[0] == 0x80:  # GNU: binary
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not all(48 <= digit < 56 for digit in digits):
        raise FormatError(f"{digits!r} is no size, in the tar header at {at}")
    return int(digits or b"0", 8)


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345] != 0:
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return os.fsdecode(name)


def _pax(text: bytes) -> dict[bytes, bytes]:
    """Records of a PAX header, each `LENGTH KEYWORD=VALUE` and a line's end."""
    records, at = {}, 0
    while at < len(text) and text[at] != 0:
        space = text.find(b" ", at, at + 20)
        length = _decimal(text[at:space]) if space > at else 0
        if length < space - at + 4 or at + length > len(text):
            raise FormatError(f"a PAX record of length {length}")
        keyword, _, value = text[space + 1 : at + length - 1].partition(b"=")
        records[keyword] = value
        at += length
    return records


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise FormatError(f"{digits[:40]!r} is no length, in a PAX record")
    return int(digits)
