"""Which files of a cache are believed to be what their names say: ours, where nobody else may write; others once they are hashed."""

import hashlib
import os
import stat
from pathlib import Path


class Trust:
    """Holds which files of one folder this process trusts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashed: set[tuple[int, int, int]] = set()  # device, inode, size

    def holds(self, descriptor: int, sha256: str) -> bool:
        """Whether the file is ours alone, or was hashed by this process."""
        status, folder = os.fstat(descriptor), self._folder.stat()
        ours = status.st_uid == folder.st_uid == os.geteuid() and status.st_nlink == 1
        if ours and not (status.st_mode | folder.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            return True
        identity = status.st_dev, status.st_ino, status.st_size
        if identity not in self._hashed:
            if digest(descriptor) != sha256:
                return False
            self._hashed.add(identity)
        return True


def digest(descriptor: int) -> str:
    """sha256 of the whole file."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
