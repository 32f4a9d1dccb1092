"""A folder of fetched files, shared by all processes of a machine, never larger than its limit.

Files are named by their sha256, so they serve every dataset and revision, and cannot go stale. Who uses a file holds a
shared lock on it, who fetches or removes one an exclusive lock: kernel locks on the files themselves, which die with
their process. There is nothing else: no index, no counter, no shared memory, nothing to clean after `kill -9`.

The folder is made for its user alone, and no link in it is followed. A file of another user, or in a folder that others may write
to, is hashed once before a process trusts it: who may write there can still change it afterwards.

    CACHE/files/<sha256>                 whole and verified
    CACHE/files/<sha256>.<size>.part     being fetched, or left by a process that died: the next one goes on from there
    CACHE/room.lock                      held by who makes room; empty
"""

import contextlib
import fcntl
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loader.cache_room import Room, open_part
from loader.format import SHA256, FormatError
from loader.printable import printable
from loader.private_files import make_private_folder, open_private
from loader.trust import Trust, digest

log = logging.getLogger("loader")

Fetch = Callable[[int], None]  # completes the file of a descriptor, from the bytes that it holds already
POLL = 0.05  # seconds
STALL = 30.0  # seconds of waiting before a line in the log
PATIENCE = 1.5  # seconds to wait for room, before even what is planned to be read is removed
STANDSTILL = 5.0  # seconds to wait for room, before the limit is exceeded


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder given, else $LATENTMILL_CACHE, else ~/.cache/latentmill."""
    return Path(given or os.environ.get("LATENTMILL_CACHE") or "~/.cache/latentmill").expanduser()


class Stopped(Exception):
    """The loader was closed while a file was being fetched."""


# Of this process: each lets go of files if another needs the room.
_CACHES: "weakref.WeakSet[Cache]" = weakref.WeakSet()
_CACHES_LOCK = threading.Lock()


class Cache:
    """limit: bytes on disk; None: no limit."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder, self.limit = folder / "files", limit
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.busy: set[str] = set()  # what this process is fetching
        self._stop = threading.Event()
        self._let_go: Callable[[], None] = lambda: None
        self._verified: set[str] = set()
        self.room, self._trust, self._exceeded = Room(self.folder, limit), Trust(self.folder), False
        with _CACHES_LOCK:
            _CACHES.add(self)

    def open(self, sha256: str, size: int, name: str, fetch: Fetch) -> int:
        """A descriptor of the file, which nobody removes while it is open; fetched first if need be.

        Raises whatever `fetch` does, FormatError if what it fetched is not the file, Stopped.
        """
        check_name(sha256)
        descriptor = self._open_whole(sha256)
        if descriptor is not None:
            self.count("cache_hits")
            return descriptor
        self.count("cache_misses")
        found = self._fetch(sha256, size, name, fetch, wait=True)
        assert found is not None
        return found

    def reserve(self, sha256: str, size: int) -> bool:
        """Lay the part of a file that is to be fetched; False: there is no room but for what loaders plan to read."""
        check_name(sha256)
        part = self.folder / f"{sha256}.{size}.part"
        if (self.folder / sha256).exists() or part.exists():
            return True
        make_private_folder(self.folder)
        removed = self.room.take(part, size, planned=False)
        self.count("cache_evictions", removed or 0)
        return removed is not None

    def prefetch(self, sha256: str, size: int, name: str, fetch: Fetch) -> bool:
        """Fetch the file if there is room for it and nobody else is at it. False: there was no room."""
        check_name(sha256)
        if (self.folder / sha256).exists():
            return True
        with contextlib.suppress(BlockingIOError):
            descriptor = self._fetch(sha256, size, name, fetch, wait=False)
            if descriptor is None:
                return False
            os.close(descriptor)
        return True

    def share(self, let_go: Callable[[], None]) -> None:
        """Call `let_go`, which closes files that are held but not being read, where another one needs their room."""
        self._let_go = let_go

    def begin(self) -> None:
        """Fetch again after `stop`, or in another process. Who waits since before is not waited for."""
        self._stop = threading.Event()

    def stop(self) -> None:
        """Have all that fetch or wait raise Stopped."""
        self._stop.set()

    def check(self, what: str, seconds: float = 0.0) -> None:
        """Pause. Raises Stopped, at once, where the loader was closed."""
        if self._stop.wait(seconds) if seconds else self._stop.is_set():
            raise Stopped(what)

    def count(self, what: str, number: int = 1) -> None:
        with self._counting:
            self._counts[what] += number

    def take_counts(self) -> Counter[str]:
        """What was counted since the last call."""
        with self._counting:
            counts, self._counts = self._counts, Counter()
        return counts

    def discard(self, sha256: str) -> bool:
        """Remove the file if it is damaged; True if it is gone, so that opening it again fetches it."""
        check_name(sha256)
        if sha256 in self._verified:
            return False
        path = self.folder / sha256
        with contextlib.suppress(FileNotFoundError):
            with open(open_private(path), "rb") as file:
                if digest(file.fileno()) == sha256:
                    self._verified.add(sha256)
                    return False
                if _is(path, file.fileno()):  # another thread may have fetched it anew meanwhile
                    log.warning("%s was damaged on disk: fetching it again", printable(path))
                    path.unlink()
        return True

    def _open_whole(self, sha256: str) -> int | None:
        """Open and lock. A file that was removed between the two does not count."""
        path = self.folder / sha256
        try:
            descriptor = open_private(path)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is(path, descriptor):
            os.close(descriptor)
            return None
        if not self._trust.holds(descriptor, sha256):
            log.warning("%s is not what its name says: fetching it again", printable(path))
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(PermissionError):  # of another user
            if os.fstat(descriptor).st_mtime < time.time():  # else it is planned
                os.utime(descriptor)
        return descriptor

    def _fetch(self, sha256: str, size: int, name: str, fetch: Fetch, wait: bool) -> int | None:
        """The fetched file, open and locked. None: not `wait`, and no room. BlockingIOError: not `wait`, and being fetched."""
        part, whole = self.folder / f"{sha256}.{size}.part", self.folder / sha256
        make_private_folder(self.folder)
        while True:
            if not self._make_room(part, size, name, wait):
                return None
            descriptor = open_part(part)
            try:
                if self._lock(descriptor, part, whole, name, wait):
                    self._complete(descriptor, sha256, name, fetch)
                    self.room.publish(part, whole)
                    if size and not wait:
                        self.room.plan([sha256])
                    fcntl.flock(descriptor, fcntl.LOCK_SH)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            found = self._open_whole(sha256)
            if found is not None:
                return found

    def _complete(self, descriptor: int, sha256: str, name: str, fetch: Fetch) -> None:
        """Fetch, verify, sync."""
        self.busy.add(name)
        try:
            fetch(descriptor)
        finally:
            self.busy.discard(name)
        if (found := digest(descriptor)) != sha256:
            os.truncate(descriptor, 0)
            raise FormatError(f"{name} has sha256 {found}, the manifest says {sha256}")
        os.fsync(descriptor)

    def _lock(self, descriptor: int, part: Path, whole: Path, name: str, wait: bool) -> bool:
        """Become the one who fetches. Waits for another that does, as long as it lives; False if that one has finished."""
        for _ in _waiting(f"another process to fetch {name}", self._stop):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not _is(part, descriptor):  # whole by now, and in use
                    return False
                if not wait:
                    raise
                continue
            if whole.exists() and _is(
                part, descriptor
            ):  # it became whole before we made this part, an empty one
                part.unlink()
            return _is(part, descriptor)
        return False

    def _make_room(self, part: Path, size: int, name: str, wait: bool) -> bool:
        """Lay the part, which takes the room; False: not `wait`, and there is none but for what loaders plan to read.

        Who waits does so for a moment: then even that goes, and in the end the limit.
        """
        for waited in _waiting(f"room in the cache for {name}", self._stop):
            removed = self.room.take(part, size, planned=waited > PATIENCE)
            if removed is not None:
                self.count("cache_evictions", removed)
                return True
            if not wait:
                return False
            with _CACHES_LOCK:
                beside = [cache for cache in _CACHES if cache.folder == self.folder]
            for cache in beside:
                cache._let_go()
            if waited > STANDSTILL and not self.busy:
                if not self._exceeded:
                    log.warning(
                        "the cache exceeds its limit of %s bytes: all of it is in use; raise it", self.limit
                    )
                self._exceeded = True
                return True
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"].parent, state["limit"])  # type: ignore[misc]


def check_name(sha256: str) -> None:
    """Raises FormatError for what is no sha256, before it becomes a path: it comes from a manifest, which may be a stranger's."""
    if not SHA256.fullmatch(sha256):
        raise FormatError(f"sha256 {sha256!r} is not 64 hexadecimal digits")


def _is(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _waiting(what: str, stop: threading.Event) -> Iterator[float]:
    """Seconds waited so far, again and again; with a line in the log every now and then."""
    begin = time.monotonic()
    line = begin + STALL
    while True:
        now = time.monotonic()
        if now > line:
            log.warning("waiting for %s since %.0f s", what, now - begin)
            line += STALL
        yield now - begin
        if stop.wait(POLL):
            raise Stopped(what)
