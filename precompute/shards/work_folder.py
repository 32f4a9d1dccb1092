"""`OUT/.work/`: the control files by which the processes of a run meet in a folder, and its temporary files.

They are made exclusively and no link is followed, for others may write to a folder that is shared.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Hashable
from pathlib import Path

from precompute.errors import OutputError
from precompute.shards.destination import WORK
from precompute.shards.missing_ok import is_gone, may_be_gone

MODE = 0o644  # others read what is finished; they replace files rather than write to them
EXCLUSIVE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
LOOK = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe does not hold us up
READ = 4096  # bytes of a control file; those of ours have 200


class WorkFolder:
    """The control files of a run that writes to `path`, and the calls to the disk that it makes there."""

    def __init__(self, path: Path, split: str = "train") -> None:
        self.path, self.split = path, split
        self._work = path / WORK

    def __str__(self) -> str:
        return str(self.path)

    def create(self, name: str, data: bytes) -> bool:
        while True:
            self._make_work()
            try:
                self.disk_write(self._work / name, data)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if not is_gone(error):
                    raise  # else a process that was through has removed the empty folder

    def touch(self, name: str) -> None:
        with may_be_gone():
            os.utime(self._work / name, follow_symlinks=False)

    def version(self, name: str) -> int | None:
        return self.time(name)

    def time(self, name: str) -> int | None:
        try:
            return self.disk_stat(self._work / name).st_mtime_ns
        except OSError as error:
            if not is_gone(error):
                raise
            return None

    def read(self, name: str) -> bytes:
        try:
            descriptor = os.open(self._work / name, LOOK)
        except OSError:  # gone, a link, or nothing that can be read
            return b""
        try:
            return os.read(descriptor, READ) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def controls(self) -> list[str]:
        try:
            self._refuse_link()
            return self.disk_list(self._work)
        except OSError as error:
            if not is_gone(error):
                raise
            return []  # whoever finishes last removes the empty folder

    def versions(self) -> dict[str, Hashable]:
        return {name: self.version(name) for name in self.controls()}

    def remove(self, name: str) -> None:
        with may_be_gone():
            path = self._work / name
            if stat.S_ISDIR(self.disk_stat(path).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                self.disk_unlink(path)

    # --- the disk ---

    def _make_work(self) -> None:
        # One that was there may be gone at once, removed by a process that is through; then whoever writes there tries again.
        with contextlib.suppress(FileExistsError):
            self._work.mkdir(parents=True)
        self._refuse_link()

    def _refuse_link(self) -> None:
        """Raises OutputError: what lies behind a link that somebody has laid is not ours to clear away."""
        if self._work.is_symlink() or self._work.is_file():
            what = "a link" if self._work.is_symlink() else "a file"
            raise OutputError(f"--output {self.path}: {WORK} in it is {what}; remove it and run again")

    def disk_stat(self, path: Path) -> os.stat_result:
        return path.stat(follow_symlinks=False)

    def disk_write(self, path: Path, data: bytes) -> None:
        write_new(path, data)

    def _replace(self, path: Path, data: bytes, temporary: Path) -> None:
        """Write, sync, and only then rename to `path`: the file is there whole or not at all."""
        self.disk_write(temporary, data)
        try:
            self.disk_rename(temporary, path)
        except OSError:
            with may_be_gone():
                self.disk_unlink(temporary)
            raise
        sync_directory(path.parent)

    def disk_rename(self, path: Path, to: Path) -> None:
        path.replace(to)

    def disk_unlink(self, path: Path) -> None:
        path.unlink()

    def disk_list(self, path: Path) -> list[str]:
        return os.listdir(path)


def write_new(path: Path, data: bytes) -> None:
    """Write and sync a file that is not there yet. Raises FileExistsError; after any other fault nothing is left of it."""
    descriptor = os.open(path, EXCLUSIVE, MODE)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with may_be_gone():
            path.unlink()
        raise


def sync_directory(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
