"""Which files of a cache are believed to be what their names say: ours, where nobody else may write; others once they are hashed.

A file of ours is used before it lies on the disk, where it becomes read-only. What a power cut met before that is hashed first.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import stat
import threading
from pathlib import Path

from loader.printable import printable
from loader.private_files import make_private_folder, open_private

log = logging.getLogger("loader")

WRITTEN, ON_DISK, DOUBTED = 0o600, 0o400, 0o700  # modes of our files; the last one is given by nobody else
NOT_OURS = {errno.EACCES, errno.EPERM, errno.EROFS}  # a cache of others, which we may read
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Name the time since this machine was started; "" where the system has no name for it."""
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text()
    return ""


class Trust:
    """Holds which files of one folder this process trusts."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._boot = folder, ""
        self._hashed: set[tuple[int, int, int]] = set()  # device, inode, size

    def holds(self, descriptor: int, sha256: str) -> bool:
        """Whether the file is ours alone, and no machine went down under it, or was hashed by this process."""
        self._doubt_what_was_written_before()
        status, folder = os.fstat(descriptor), self._folder.stat()
        ours = status.st_uid == folder.st_uid == os.geteuid() and status.st_nlink == 1
        ours = ours and not (status.st_mode | folder.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
        if ours and stat.S_IMODE(status.st_mode) != DOUBTED:
            return True
        identity = status.st_dev, status.st_ino, status.st_size
        if identity not in self._hashed:
            if digest(descriptor) != sha256:
                return False
            self._hashed.add(identity)
            if ours:
                self.settle(sha256)
        return True

    def prepare(self, descriptor: int) -> None:
        """Make a file ready to get its name. Where nothing tells of a power cut, it has to be on the disk first."""
        self._doubt_what_was_written_before()
        if not self._boot:
            os.fsync(descriptor)

    def settle(self, name: str) -> None:
        """Bring the file to the disk while others read it."""
        threading.Thread(target=_settle, args=(self._folder / name,), name="loader-sync", daemon=True).start()

    def _doubt_what_was_written_before(self) -> None:
        """Once in a process: after each start of the machine the first one doubts all that had not come to the disk."""
        if self._boot or not (boot := boot_id()):
            return
        make_private_folder(self._folder)
        try:
            descriptor = open_private(self._folder.parent / "boot", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno in NOT_OURS:
                return
            raise
        with open(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if file.read() != boot:
                for path in self._folder.iterdir():
                    if len(path.name) == 64:
                        _change_mode(path, WRITTEN, DOUBTED)
                file.seek(0)
                file.truncate()
                file.write(boot)
        self._boot = boot


def _change_mode(path: Path, before: int, after: int) -> None:
    with contextlib.suppress(OSError), open(open_private(path), "rb") as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) == before:
            os.fchmod(file.fileno(), after)


def _settle(path: Path) -> None:
    try:
        with open(open_private(path), "rb") as file:
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), ON_DISK)
    except FileNotFoundError:  # removed meanwhile
        return
    except OSError as error:
        log.warning("%s does not come to the disk: %s", printable(path), printable(error))


def digest(descriptor: int) -> str:
    """sha256 of the whole file."""
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
