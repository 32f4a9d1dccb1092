"""Room for one more file in a folder of a limited size: what is needed last goes first.

A file's time says when it is needed: one that a living loader needs soon bears a time to come, the sooner the later; one that
was used, the time of its use; one that no loader's window holds any more, a time long ago. So every process on the machine sees
what every other one needs, and a process that died is forgotten within HORIZON seconds.
"""

import contextlib
import fcntl
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path

from loader.private_files import NotPlain, open_private

log = logging.getLogger("loader")

PART = re.compile(r"[0-9a-f]{64}\.(\d{1,18})\.part")
HORIZON = 15.0  # seconds that a plan holds, unless it is renewed
SIDECAR = 1 << 20  # bytes that a file of unknown size is taken for, until it is there
LONG_AGO = 3e8  # seconds
PATIENCE = 1.5  # seconds to wait for room, before even what is planned to be read is removed
STANDSTILL = 5.0  # seconds to wait for room, before the limit is exceeded

# Of this process: each lets go of files if another needs the room.
_ROOMS: "weakref.WeakSet[Room]" = weakref.WeakSet()
_ROOMS_LOCK = threading.Lock()


class Room:
    """files: the folder. limit: bytes of what lies there; parts count as what they will be. None: no limit."""

    def __init__(self, files: Path, limit: int | None) -> None:
        self._files, self._limit = files, limit
        self._unknown = min(SIDECAR, (limit or 0) // 32)
        self._order: dict[str, int] = {}
        self._let_go: Callable[[], None] = lambda: None
        self._exceeded = False
        with _ROOMS_LOCK:
            _ROOMS.add(self)

    def share(self, let_go: Callable[[], None]) -> None:
        """Call `let_go`, which closes files that are held but not being read, where another one needs their room."""
        self._let_go = let_go

    def take(
        self, part: Path, size: int, waiting: Iterable[float] | None = None, busy: Set[str] = frozenset()
    ) -> int | None:
        """Make room for `size` bytes and lay the part, which takes it. Files removed for that; None: there is none but for what
        loaders plan to read.

        waiting: seconds waited so far, of who waits for room: after a moment even what is planned goes, and in the end, if
        nobody is `busy` fetching, the limit.
        """
        for waited in waiting or (0.0,):
            removed = self._take(part, size, planned=waited > PATIENCE)
            if removed is not None or waiting is None:
                return removed
            with _ROOMS_LOCK:
                beside = [room for room in _ROOMS if room._files == self._files]
            for room in beside:
                room._let_go()
            if waited > STANDSTILL and not busy:
                if not self._exceeded:
                    log.warning(
                        "the cache exceeds its limit of %s bytes: all of it is in use; raise it", self._limit
                    )
                self._exceeded = True
                return 0
        return None

    def _take(self, part: Path, size: int, planned: bool) -> int | None:
        """Make room for `size` bytes and lay the part, which takes it. Files removed for that; None: there is no room.

        planned: remove even what loaders plan to read, the last of it first; of our own plan, only what is needed later.
        """
        if self._limit is None:
            return 0
        order, name = dict(self._order), part.name[:64]
        sooner = {other for other, at in order.items() if at <= order[name]} if name in order else set()
        size = size or self._unknown
        with self._counting():
            if part.exists() or (self._files / name).exists():
                return 0
            removed = self._evict(self._limit - size, planned, sooner)
            if removed is not None:
                os.close(open_part(part))
                self._set_time(part.name, time.time() + HORIZON)  # or the next one takes the room
            return removed

    def publish(self, part: Path, whole: Path) -> None:
        """Rename a part that is whole. Who counts what lies in the folder could miss a file that changes its name meanwhile."""
        with self._counting() if self._limit is not None else contextlib.nullcontext():
            part.rename(whole)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        with open(open_private(self._files.parent / "room.lock", os.O_RDWR | os.O_CREAT), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def plan(self, names: Sequence[str]) -> None:
        """The files that are needed soon, in that order: they are kept as long as there are others to remove."""
        now = time.time()
        if len(names) > 1:
            self._order = {name: number for number, name in enumerate(names)}
        for number, name in enumerate(names):
            self._set_time(name, now + HORIZON * (1 - number / len(names)))

    def release(self, name: str) -> None:
        """Nobody here needs the file soon: it goes first, or after those released before it."""
        self._set_time(name, time.time() - LONG_AGO)

    def _set_time(self, name: str, when: float) -> None:
        with contextlib.suppress(OSError):  # not there, or another user's
            os.utime(self._files / name, (when, when), follow_symlinks=False)

    def _evict(self, target: int, planned: bool, sooner: set[str]) -> int | None:
        """Bring the files down to `target` bytes. Files removed; None: it cannot be done."""
        files, total, removed = [], 0, 0
        for entry in os.scandir(self._files):
            with contextlib.suppress(FileNotFoundError):
                status, part = entry.stat(follow_symlinks=False), PART.fullmatch(entry.name)
                size = status.st_size
                if part:  # what it will be
                    size = int(part[1]) or max(size, self._unknown)
                files.append((status.st_mtime, size, Path(entry.path)))
                total += size
        now = time.time()
        spare = [
            file for file in sorted(files) if file[0] <= now or (planned and file[2].name[:64] not in sooner)
        ]
        if total - sum(size for _, size, _ in spare) > target:
            return None  # and nothing is removed in vain
        for _, size, path in spare:
            if total <= target:
                break
            if _remove(path):
                removed += 1
                total -= size
        return removed if total <= target else None


def open_part(part: Path) -> int:
    """The file that is to grow, made if need be; never one that another user holds open."""
    while True:
        descriptor = open_private(part, os.O_RDWR | os.O_CREAT)
        if os.fstat(descriptor).st_uid == os.geteuid():
            return descriptor
        os.close(descriptor)
        part.unlink(missing_ok=True)


def _remove(path: Path) -> bool:
    """Remove a file unless somebody uses or fetches it."""
    try:
        with open(open_private(path), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError, PermissionError, NotPlain):
        return False
    return True
