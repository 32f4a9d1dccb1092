"""`--scratch`: a folder on a disk here, in which the units of a process grow before they go to a store."""

import fcntl
import shutil
import tempfile
import threading
from pathlib import Path
from typing import IO

NAME, LOCK = "latentmill-", "latentmill.lock"


class Scratch:
    """A folder of this process below `place`, made when it is needed. What killed processes left there is cleared away."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._making = threading.Lock()  # the writer and who pushes may ask for it at once

    @property
    def folder(self) -> Path:
        with self._making:
            if self._folder is None:
                self.sweep()
                new = Path(tempfile.mkdtemp(prefix=f"new-{NAME}", dir=self._place))
                (new / LOCK).touch()
                self._lock = _locked(new)
                self._folder = new.rename(new.with_name(new.name.removeprefix("new-")))
            return self._folder

    def close(self) -> None:
        if self._folder is not None and self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()
            self._folder = self._lock = None

    def sweep(self) -> None:
        """A lock goes with the process that held it."""
        for left in self._place.glob(f"{NAME}*"):
            lock = _locked(left)
            if lock is not None:
                shutil.rmtree(left, ignore_errors=True)
                lock.close()


def _locked(folder: Path) -> IO[bytes] | None:
    """None where it is no folder of ours, or in use."""
    try:
        file = open(folder / LOCK, "rb+")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
