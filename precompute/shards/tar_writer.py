"""Writes one tar, and hashes it in a thread of its own, which also syncs it to disk while the next tar is begun.

What is written is copied once, into a few chunks that are used over and over, so that they stay in the processor's cache.
"""

import contextlib
import hashlib
import mmap
import os
import struct
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from loader.border import FormatError

BLOCK, RECORD = 512, 20 * 512
ZEROS = bytes(BLOCK)
CHUNK = 2 << 20  # bytes written and hashed at once: a huge page
BEHIND = 2  # chunks of a tar that are written and may wait for the hash
SLAB = 8  # chunks allocated at once
FREE: list[memoryview] = []  # chunks to use again, the last one first

# A regular file of mode 644, owned by root, of 1970. Name, size and checksum are filled in.
HEADER = struct.Struct("100s24s11s13s8s356s")
BEFORE_SIZE = b"0000644\0" + b"0000000\0" * 2
BEFORE_CHECKSUM = b"\0" + b"00000000000\0"
BEHIND_CHECKSUM = b"0" + bytes(100) + b"ustar\00000"
BLANK_SUM = sum(BEFORE_SIZE + BEFORE_CHECKSUM + b" " * 8 + BEHIND_CHECKSUM)

Buffer = bytes | memoryview
Result = TypeVar("Result")


class AtOnce(Executor):
    """Does what it is given before it returns: a tar is hashed by the thread that writes it, where the others have work of their own."""

    def submit(self, work: Callable[..., Result], /, *arguments: object, **named: object) -> Future[Result]:
        done = Future[Result]()
        done.set_result(work(*arguments, **named))
        return done


class TarWriter:
    """Uncompressed tar whose bytes depend on names and data alone: no times, no owners. hasher: hashes it, in the order of its bytes."""

    def __init__(self, path: Path, hasher: Executor | None = None) -> None:
        self.path = path
        self.position = 0
        self._file = open(path, "xb", buffering=0)  # a new one: no link that somebody has laid is followed
        self._chunk = free_chunk()
        self._filled = self._padding = 0
        self._sha256 = hashlib.sha256()
        self._hasher = hasher or ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._behind: deque[Future[None]] = deque()

    def add(self, name: str, *data: Buffer) -> int:
        """Append one member, whose contents may come in parts, and return the offset of its data, in bytes."""
        offset = self._begin(name, sum(map(len, data)))
        for part in data:
            self.put(part)
        return offset

    def copy(self, members: Iterable[tuple[str, int, int, int]]) -> list[int]:
        """Append members that lie in other files, read straight to where they are written from: name, descriptor, where it begins
        and size, in bytes. The offsets of their data. Raises FormatError where a file ends early."""
        offsets = []
        for name, descriptor, start, size in members:
            head = ZEROS[: self._padding] + tar_header(name, size)
            data = self._filled + len(head)
            if data + size <= CHUNK:
                self._chunk[self._filled : data] = head
                count = os.preadv(descriptor, [self._chunk[data : data + size]], start)
                self._filled, self.position = data + count, self.position + len(head) + count
            else:
                self.put(head)
                count = 0
            if count < size:
                self._read(name, descriptor, start + count, size - count)
            offsets.append(self.position - size)
            self._padding = -size % BLOCK
        return offsets

    def _read(self, name: str, descriptor: int, start: int, size: int) -> None:
        """Append a part of another file, over as many chunks as it takes."""
        end = start + size
        while start < end:
            if self._filled == CHUNK:
                self._turn()
            count = os.preadv(descriptor, [self._chunk[self._filled : self._filled + end - start]], start)
            if not count:
                raise FormatError(f"the tar that {name} is copied from ends early")
            self._filled, start = self._filled + count, start + count
        self.position += size

    def close(self) -> Future[str]:
        """Write the end of the archive. The rest goes on behind: the result, the sha256 of the whole file, is there once
        the file is synced to disk, and may raise OSError."""
        end = self.position + self._padding + 2 * BLOCK
        self.put(bytes(self._padding + 2 * BLOCK + -end % RECORD))
        self.flush()
        sha256 = self._hasher.submit(self._finish)
        self._hasher.shutdown(wait=False)
        return sha256

    def discard(self) -> None:
        """Close a file, finished or not, that is about to be deleted; a full disk must not hide the error that led here."""
        self._hasher.shutdown(cancel_futures=True)
        with contextlib.suppress(OSError):
            self._file.close()

    def _begin(self, name: str, size: int) -> int:
        """Fill up the member before, and append a header; where the data of this one begin."""
        self.put(bytes(self._padding) + tar_header(name, size))
        self._padding = -size % BLOCK
        return self.position

    def put(self, data: Buffer) -> None:
        """Append bytes: a header, or a part of a member."""
        self.position += len(data)
        while (end := self._filled + len(data)) > CHUNK:
            room = CHUNK - self._filled
            self._chunk[self._filled :] = data[:room]
            self._filled, data = CHUNK, data[room:]
            self._turn()
        self._chunk[self._filled : end] = data
        self._filled = end

    def _turn(self) -> None:
        """Go on with another chunk."""
        self.flush()
        self._chunk, self._filled = free_chunk(), 0

    def flush(self) -> None:
        """Write the chunk out as far as it is filled, and hash it behind."""
        while len(self._behind) >= BEHIND:
            self._behind.popleft().result()
        data = self._chunk[: self._filled]
        while data:
            data = data[self._file.write(data) :]
        self._behind.append(self._hasher.submit(self._hash, self._chunk, self._filled))

    def _hash(self, chunk: memoryview, filled: int) -> None:
        self._sha256.update(chunk[:filled])
        FREE.append(chunk)

    def _finish(self) -> str:
        os.fsync(self._file.fileno())
        self._file.close()
        return self._sha256.hexdigest()


def free_chunk() -> memoryview:
    """CHUNK bytes, in a huge page where there are any: with small ones a third of the hash's time goes into page tables."""
    if not FREE:
        slab: mmap.mmap | bytearray
        if sys.platform != "linux":
            slab = bytearray(SLAB * CHUNK)
        else:
            slab = mmap.mmap(-1, SLAB * CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without them
                slab.madvise(mmap.MADV_HUGEPAGE)
        FREE.extend(memoryview(slab)[start : start + CHUNK] for start in range(0, SLAB * CHUNK, CHUNK))
    return FREE.pop()


def tar_header(name: str, size: int) -> bytes:
    """What `tarfile.TarInfo(name).tobuf(PAX_FORMAT)` gives, ten times faster where the name is short and plain."""
    if len(name) > 100 or not name.isascii() or size >= 8**11:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    encoded, digits = name.encode(), b"%011o" % size
    checksum = b"%06o\0 " % (BLANK_SUM + sum(encoded) + sum(digits))
    return HEADER.pack(encoded, BEFORE_SIZE, digits, BEFORE_CHECKSUM, checksum, BEHIND_CHECKSUM)
