"""A file that is on the way: bytes are added at its end, and hashed as they come, so that whole it is verified as well."""

import hashlib
import os

PIECE = 1 << 20  # bytes of what is here already that are hashed at a time
Bytes = bytes | memoryview


def write_at(descriptor: int, data: Bytes, place: int) -> None:
    """Write all of it, in as many calls as the system takes. Raises OSError where the disk is full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        place, view = place + written, view[written:]


class GrowingFile:
    """descriptor: of the file, which may hold the beginning from an earlier attempt. size: bytes that are here."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.size, self._sha256 = descriptor, 0, hashlib.sha256()
        while data := os.pread(descriptor, PIECE, self.size):
            self._count(data)

    def add(self, data: Bytes) -> None:
        """Raises OSError where the disk is full."""
        write_at(self.descriptor, data, self.size)
        self._count(data)

    def clear(self) -> None:
        """Begin anew."""
        os.truncate(self.descriptor, 0)
        self.size, self._sha256 = 0, hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hash what is here."""
        return self._sha256.hexdigest()

    def _count(self, data: Bytes) -> None:
        self._sha256.update(data)
        self.size += len(data)
