"""A folder of fetched files, shared by all processes of a machine, never larger than its limit.

Files are named by their sha256, so they serve every dataset and revision, and cannot go stale. Who uses a file holds a
shared lock on it, who fetches or removes one an exclusive lock: kernel locks on the files themselves, which die with
their process. There is nothing else: no index, no counter, no shared memory, nothing to clean after `kill -9`.

The folder is made for its user alone, and no link in it is followed. A file of another user, or in a folder that others may write
to, is hashed once before a process trusts it: who may write there can still change it afterwards.

    CACHE/files/<sha256>                 whole and verified
    CACHE/files/<sha256>.<size>.part     being fetched, or left by a process that died: the next one goes on from there
    CACHE/room.lock                      held by who makes room; empty
    CACHE/boot                           since which start of the machine files are written (trust.py)
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loader.cache_room import Room, open_part
from loader.counts import Counts
from loader.format import SHA256, FormatError
from loader.part import GrowingFile
from loader.printable import printable
from loader.private_files import make_private_folder, open_private
from loader.stopping import Stop
from loader.trust import Trust, digest

log = logging.getLogger("loader")

Fetch = Callable[[GrowingFile], None]  # completes a file, from the bytes that are here already


def cache_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder given, else $LATENTMILL_CACHE, else ~/.cache/latentmill."""
    return Path(given or os.environ.get("LATENTMILL_CACHE") or "~/.cache/latentmill").expanduser()


class Cache:
    """limit: bytes on disk; None: no limit."""

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder, self.limit = folder / "files", limit
        self.counts = Counts()
        self.busy: set[str] = set()  # what this process is fetching
        self.stop = Stop()
        self._verified: set[str] = set()
        self.room, self._trust = Room(self.folder, limit), Trust(self.folder)

    def open(self, sha256: str, size: int, name: str, fetch: Fetch) -> int:
        """A descriptor of the file, which nobody removes while it is open; fetched first if need be.

        Raises whatever `fetch` does, FormatError if what it fetched is not the file, Stopped.
        """
        check_sha256(sha256)
        descriptor = self._open_whole(sha256)
        if descriptor is not None:
            self.counts.add("cache_hits")
            return descriptor
        self.counts.add("cache_misses")
        found = self._fetch(sha256, size, name, fetch, wait=True)
        assert found is not None
        return found

    def reserve(self, sha256: str, size: int) -> bool:
        """Lay the part of a file that is to be fetched; False: there is no room but for what loaders plan to read."""
        check_sha256(sha256)
        part = self.folder / f"{sha256}.{size}.part"
        if (self.folder / sha256).exists() or part.exists():
            return True
        make_private_folder(self.folder)
        removed = self.room.take(part, size)
        self.counts.add("cache_evictions", removed or 0)
        return removed is not None

    def prefetch(self, sha256: str, size: int, name: str, fetch: Fetch) -> bool:
        """Fetch the file if there is room for it and nobody else is at it. False: there was no room."""
        check_sha256(sha256)
        if (self.folder / sha256).exists():
            return True
        with contextlib.suppress(BlockingIOError):
            descriptor = self._fetch(sha256, size, name, fetch, wait=False)
            if descriptor is None:
                return False
            os.close(descriptor)
        return True

    def discard(self, sha256: str) -> bool:
        """Remove the file if it is damaged. True: open it again. False from the second call on where it is whole."""
        check_sha256(sha256)
        if sha256 in self._verified:
            return False
        path = self.folder / sha256
        with contextlib.suppress(FileNotFoundError):
            with open(open_private(path), "rb") as file:
                # Another thread may have replaced the copy that this one holds, before or meanwhile.
                if digest(file.fileno()) == sha256:
                    self._verified.add(sha256)
                elif _is(path, file.fileno()):
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
            waited = self.stop.waiting(f"room in the cache for {name}") if wait else None
            removed = self.room.take(part, size, waited, self.busy)
            if removed is None:
                return None
            self.counts.add("cache_evictions", removed)
            descriptor = open_part(part)
            try:
                if self._lock(descriptor, part, whole, name, wait):
                    self._complete(descriptor, sha256, name, fetch)
                    self._trust.prepare(descriptor)
                    self.room.publish(part, whole)
                    self._trust.settle(sha256)
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
        """Fetch and verify."""
        part = GrowingFile(descriptor)
        self.busy.add(name)
        try:
            fetch(part)
        finally:
            self.busy.discard(name)
        if (found := part.sha256) != sha256:
            part.clear()
            raise FormatError(f"{name} has sha256 {found}, the manifest says {sha256}")

    def _lock(self, descriptor: int, part: Path, whole: Path, name: str, wait: bool) -> bool:
        """Become the one who fetches. Waits for another that does, as long as it lives; False if that one has finished."""
        for _ in self.stop.waiting(f"another process to fetch {name}"):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not _is(part, descriptor):  # whole by now, and in use
                    return False
                if not wait:
                    raise
                continue
            # It became whole before we made this part, an empty one.
            if whole.exists() and _is(part, descriptor):
                part.unlink()
            return _is(part, descriptor)
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"].parent, state["limit"])  # type: ignore[misc]


def check_sha256(sha256: str) -> None:
    """Raises FormatError for what is no sha256, before it becomes a path: it comes from a manifest, which may be a stranger's."""
    if not SHA256.fullmatch(sha256):
        raise FormatError(f"sha256 {sha256!r} is not 64 hexadecimal digits")


def _is(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
