"""A tar elsewhere, read forward once: over as many connections as it takes, and no further than it goes."""

import io
from typing import Any, BinaryIO

from loader.remote import RemoteFolder

BLOCK = 1 << 16
# As tarfile knows them, which unpacks what begins so: to a thousand times as much as was fetched.
PACKED = (b"\x1f\x8b\x08", b"\x5d\x00\x00\x80", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def open_stream(files: RemoteFolder, name: str, size: int) -> BinaryIO:
    """The `size` bytes of a file. Reading raises what fetching it does."""
    return io.BufferedReader(_Stream(files, name, size), BLOCK)


def check_plain(stream: Any) -> None:
    """Raises ValueError where a file, open to read and to peek into, is no tar but a compressed one."""
    begin = stream.peek(16)[:16]
    if begin.startswith(PACKED) or (begin.startswith(b"BZh") and begin[4:10] == b"1AY&SY"):
        raise ValueError("a compressed tar, which no shard is")


class _Stream(io.RawIOBase):
    def __init__(self, files: RemoteFolder, name: str, size: int) -> None:
        self._size, self._given, self._at = size, 0, 0
        self._chunks, self._chunk = files.stream(name, self._have, size), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._chunk and self._given < self._size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            if not chunk:  # the server begins anew; what was given is passed over
                self._at = 0
                continue
            self._chunk = memoryview(chunk)[max(self._given - self._at, 0) :][: self._size - self._given]
            self._at += len(chunk)
        count = min(len(self._chunk), len(buffer))
        buffer[:count] = self._chunk[:count]
        self._chunk, self._given = self._chunk[count:], self._given + count
        return count

    def close(self) -> None:
        self._chunks.close()
        super().close()

    def _have(self) -> int:
        """Asked for where a connection begins, which goes on from there."""
        self._at = self._given + len(self._chunk)
        return self._at
