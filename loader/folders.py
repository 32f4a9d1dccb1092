"""Where the files of a dataset are. A local folder here; a remote one, through a cache, in cache.py."""

import os
from pathlib import Path
from typing import Protocol

from loader.format import FormatError
from loader.printable import printable

LARGEST_MANIFEST = 1 << 28  # bytes that go into memory: 700,000 shards


class Files(Protocol):
    """A folder of finished, unchanging files. Errors are OSError or FormatError, and name the file."""

    url: str

    def address(self, name: str) -> str:
        """A path or URL that others can open."""

    def read(self, name: str) -> bytes:
        """All of a small file. Raises FileNotFoundError where there is none, FormatError where it is too large."""

    def open(self, name: str, size: int, sha256: str) -> int:
        """A file descriptor, for os.pread, of a file known to have `size` bytes. The caller closes it."""

    def reserve(self, name: str, size: int, sha256: str) -> bool:
        """Take the room for a copy; False where there is none now."""

    def prefetch(self, name: str, size: int, sha256: str) -> bool:
        """Make opening it fast; False where there is no room for it now."""

    def discard(self, name: str, sha256: str) -> bool:
        """Forget a local copy that turned out to be damaged; True if opening again may give a better one."""


class LocalFolder:
    """A folder on a file system; nothing is copied or cached."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = printable(path)

    def address(self, name: str) -> str:
        return str(self.path / name)

    def read(self, name: str) -> bytes:
        with (self.path / name).open("rb") as file:
            data = file.read(LARGEST_MANIFEST + 1)
        if len(data) > LARGEST_MANIFEST:
            raise FormatError(f"it is larger than {LARGEST_MANIFEST} bytes")
        return data

    def open(self, name: str, size: int, sha256: str) -> int:
        # A pipe where a file should be blocks nobody.
        descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        found = os.fstat(descriptor).st_size
        if size and found != size:
            os.close(descriptor)
            raise FormatError(f"{self.url}/{name} holds {found} bytes, the manifest says {size}")
        return descriptor

    def reserve(self, name: str, size: int, sha256: str) -> bool:
        return True

    def prefetch(self, name: str, size: int, sha256: str) -> bool:
        return True

    def discard(self, name: str, sha256: str) -> bool:
        return False
