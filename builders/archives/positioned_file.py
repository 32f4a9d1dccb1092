"""A file that is read from place to place, and knows where it stands without asking: a seek or a tell costs more than a tar header."""

import sys
import zlib
from gzip import BadGzipFile, GzipFile
from typing import IO

from builders.core.errors import ArchiveError

__all__ = ["PositionedFile"]

_SEEK_FROM = 4096  # bytes; less is read faster than skipped
_BROKEN_GZIP = (EOFError, BadGzipFile, zlib.error)


class PositionedFile:
    """A file that nobody else moves. Raises ArchiveError for compressed data that are damaged.

    at: offset of what is read next. is_packed: whether going back means to unpack from the beginning.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.at = file, file.tell()
        self.is_packed = isinstance(file, GzipFile)

    def read(self, length: int) -> bytes:
        """So many bytes, or what is left."""
        return self.read_at(self.at, length)

    def exactly(self, length: int) -> bytes:
        return self.content(self.at, length)

    def content(self, offset: int, length: int, max_size: int = sys.maxsize) -> bytes:
        """All bytes of a place; nothing where they are more than `max_size`."""
        if length > max_size:
            return b""
        data = self.read_at(offset, length)
        if len(data) < length:
            raise ArchiveError(f"cut short inside a member, {length - len(data):,} bytes are missing")
        return data

    def read_at(self, offset: int, length: int) -> bytes:
        """So many bytes of a place, or what there is; nothing behind the end of the file."""
        gap = offset - self.at
        if gap and not 0 < gap <= _SEEK_FROM:
            self.go_to(offset)
            gap = 0
        try:
            data = self._file.read(gap + length)
        except _BROKEN_GZIP as error:
            raise ArchiveError(f"compressed data: {error}") from error
        self.at += len(data)
        return data[gap:] if gap else data

    def go_to(self, offset: int) -> None:
        """Move. A place behind the end of the file passes unnoticed; the next read finds nothing."""
        try:
            self._file.seek(offset)
        except _BROKEN_GZIP as error:
            raise ArchiveError(f"compressed data: {error}") from error
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno not in (None, 22):
                raise
            raise ArchiveError(f"a member that ends at byte {offset:,}: {error}") from error
        self.at = offset
