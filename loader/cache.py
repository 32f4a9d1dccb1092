"""A folder of fetched files, shared by all processes of a machine, never larger than its limit.

Files are named by their sha256, so they serve every dataset and revision, and cannot go stale. Who uses a file holds a
shared lock on it, who fetches or removes one an exclusive lock: kernel locks on the files themselves, which die with
their process. There is nothing else: no index, no counter, no shared memory, nothing to clean after `kill -9`.

    CACHE/files/<sha256>                 whole and verified
    CACHE/files/<sha256>.<size>.part     being fetched, or left by a process that died: the next one goes on from there
    CACHE/room.lock, CACHE/fetcher.lock  held by who makes room, by who fetches ahead; empty
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from loader.format import SHA256, FormatError

log = logging.getLogger("loader")

Fetch = Callable[[int], None]  # completes the file of a descriptor, from the bytes that it holds already
POLL = 0.05  # seconds
STALL = 30.0  # seconds of waiting before a line in the log


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder given, else $LATENTMILL_CACHE, else ~/.cache/latentmill."""
    return Path(given or os.environ.get("LATENTMILL_CACHE") or "~/.cache/latentmill").expanduser()


class Stopped(Exception):
    """The loader was closed while a file was being fetched."""


class Cache:
    """limit: bytes on disk; None: no limit."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder, self.limit = folder / "files", limit
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.busy: set[str] = set()  # what this process is fetching
        self.stop = threading.Event()
        self.reclaim: Callable[[], None] = lambda: None  # lets go of files that are held but not being read
        self._verified: set[str] = set()

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

    def prefetch(self, sha256: str, size: int, name: str, fetch: Fetch) -> bool:
        """Fetch the file if there is room for it and nobody else is at it. False: there was no room."""
        check_name(sha256)
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.folder / sha256)  # soon needed: not the next to be removed
            return True
        with contextlib.suppress(BlockingIOError):
            descriptor = self._fetch(sha256, size, name, fetch, wait=False)
            if descriptor is None:
                return False
            os.close(descriptor)
        return True

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
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    self._verified.add(sha256)
                    return False
            log.warning("%s was damaged on disk: fetching it again", path)
            path.unlink()
        return True

    def _open_whole(self, sha256: str) -> int | None:
        """Open and lock. A file that was removed between the two does not count."""
        path = self.folder / sha256
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is(path, descriptor):
            os.close(descriptor)
            return None
        os.utime(descriptor)  # what was used last is removed last
        return descriptor

    def _fetch(self, sha256: str, size: int, name: str, fetch: Fetch, wait: bool) -> int | None:
        """The fetched file, open and locked. None: not `wait`, and no room. BlockingIOError: not `wait`, and being fetched."""
        part, whole = self.folder / f"{sha256}.{size}.part", self.folder / sha256
        self.folder.mkdir(parents=True, exist_ok=True)
        while True:
            if not self._make_room(part, size, name, wait):
                return None
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if self._lock(descriptor, part, whole, name, wait):
                    self._complete(descriptor, sha256, name, fetch)
                    part.rename(whole)
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
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            os.truncate(descriptor, 0)
            raise FormatError(f"{name} has sha256 {digest}, the manifest says {sha256}")
        os.fsync(descriptor)

    def _lock(self, descriptor: int, part: Path, whole: Path, name: str, wait: bool) -> bool:
        """Become the one who fetches. Waits for another that does, as long as it lives; False if that one has finished."""
        for _ in self._waiting(f"another process to fetch {name}"):
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
        """Remove what was not used for longest and nobody uses now. The part is created at once: it takes the room."""
        if self.limit is None:
            return True
        for waited in self._waiting(f"room in the cache for {name}"):
            with (self.folder.parent / "room.lock").open("w") as room:
                fcntl.flock(room, fcntl.LOCK_EX)
                if part.exists() or self._evict(self.limit - size):
                    part.touch()
                    return True
            if not wait:
                return False
            self.reclaim()
            if waited > 2 * STALL:
                log.warning(
                    "the cache exceeds its limit of %d bytes: all of it is in use; raise it", self.limit
                )
                return True
        return False

    def _evict(self, target: int) -> bool:
        """Bring the files down to `target` bytes. Parts count as what they will be."""
        files, total = [], 0
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                size = _size_in_name(entry.name) or entry.stat().st_size
                files.append((entry.stat().st_mtime_ns, size, Path(entry.path)))
                total += size
        for _, size, path in sorted(files):
            if total <= target:
                break
            if _remove(path):
                self.count("cache_evictions")
                total -= size
        return total <= target

    def _waiting(self, what: str) -> Iterator[float]:
        """Seconds waited so far, again and again; with a line in the log every now and then."""
        begin = time.monotonic()
        line = begin + STALL
        while True:
            now = time.monotonic()
            if now > line:
                log.warning("waiting for %s since %.0f s", what, now - begin)
                line += STALL
            yield now - begin
            if self.stop.wait(POLL):
                raise Stopped(what)

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


def _size_in_name(name: str) -> int:
    return int(name.split(".")[1]) if name.endswith(".part") else 0


def _remove(path: Path) -> bool:
    """Remove a file unless somebody uses or fetches it."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
