"""How much disk the tars of a run take, seen from beside it."""

import contextlib
import os
import threading
from pathlib import Path


def bytes_of_tars(folder: Path) -> int:
    """The bytes of all tars now, those in work included; whatever is renamed or deleted meanwhile."""
    sizes = {}  # by inode: one may be renamed into place between two looks
    for below, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".tar"):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(os.path.join(below, name))
                    sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


class Watch:
    """Looks again and again, in a thread. most: the most bytes of tars that were in the folder at once."""

    def __init__(self, folder: Path) -> None:
        self.most, self._folder, self._done = 0, folder, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self.most

    def _look(self) -> None:
        while not self._done.wait(0.002):
            self.most = max(self.most, bytes_of_tars(self._folder))
