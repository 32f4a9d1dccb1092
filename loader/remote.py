"""Folders elsewhere: hf://datasets/USER/REPO[@REVISION][/FOLDER], https://..., or any URL that fsspec opens.

A fetch goes on at the byte where it broke off, waits as long as the server asks, and backs off with full jitter; it gives up
only when next to nothing, fewer than pace.LEAST bytes, arrived for `patience` seconds.
"""

import contextlib
import logging
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from loader import border, pace
from loader.cache import Cache, Fetch
from loader.folders import LARGEST_MANIFEST, Files, LocalFolder
from loader.format import FormatError
from loader.http_ranges import Span
from loader.part import Bytes, GrowingFile
from loader.partial import Partial
from loader.printable import printable
from loader.transport import FsspecTransport, HttpTransport, Interrupted, Transport
from loader.unproven import Unproven

log = logging.getLogger("loader")

LONGEST_WAIT = 60.0
LARGEST_SIDECAR = 1 << 28  # bytes of a file whose size no manifest says
LARGEST_ANSWER = 1 << 24  # bytes of what the Hub says about a revision
HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/?")
COMMIT = re.compile(r"[0-9a-fA-F]{1,64}")
WRONG_RANGES = (
    "%s/%s: %d byte ranges that the first batches were read from were not what the shard holds: the server sent something else; the "
    "shard itself is verified"
)
WRONG_BYTES = 2  # times that a file whose hash is wrong is fetched again


class RemoteFolder:
    """Files of a transport, fetched into the cache. patience: seconds in which less than 64 KiB arrive, before giving up."""

    def __init__(self, transport: Transport, cache: Cache, patience: float) -> None:
        self.transport, self.cache, self.patience = transport, cache, patience
        self.url = transport.url
        self._held: dict[str, Partial] = {}
        self._unproven = Unproven()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the first batches behind: they lie in a file of this process."""
        return {**self.__dict__, "_held": {}, "_unproven": Unproven()}

    def address(self, name: str) -> str:
        return self.transport.address(name)

    def read(self, name: str, limit: int = LARGEST_MANIFEST) -> bytes:
        """Raises FormatError where there is no end within `limit` bytes, FileNotFoundError where there is no such file."""
        data = bytearray()
        for chunk in self.stream(name, data.__len__):
            if not chunk:
                data.clear()
            data += chunk
            if len(data) > limit:
                raise FormatError(f"it is larger than {limit} bytes")
        return bytes(data)

    def open(self, name: str, size: int, sha256: str) -> int:
        descriptor = self._open(name, size, sha256)
        if wrong := self._unproven.wrong(name, descriptor):
            self.cache.counts.add("wrong_ranges", wrong)
            log.warning(WRONG_RANGES, self.url, name, wrong)
        return descriptor

    def _open(self, name: str, size: int, sha256: str) -> int:
        for _ in range(WRONG_BYTES):
            try:
                return self.cache.open(sha256, size, f"{self.url}/{name}", self._fetch(name, size))
            except FormatError as error:
                log.warning("%s: fetching it again", error)
        return self.cache.open(sha256, size, f"{self.url}/{name}", self._fetch(name, size))

    def reserve(self, name: str, size: int, sha256: str) -> bool:
        return self.cache.reserve(sha256, size)

    def prefetch(self, name: str, size: int, sha256: str) -> bool:
        return self.cache.prefetch(sha256, size, f"{self.url}/{name}", self._fetch(name, size))

    def holds(self, sha256: str) -> bool:
        """Whether the file is here, whole."""
        return (self.cache.folder / sha256).exists()

    def read_spans(self, wanted: Mapping[str, Partial]) -> None:
        """Fill each file's partial copy. Raises OSError where some bytes could not be had at the first attempt, Stopped."""

        def put(span: Span, data: bytes) -> None:
            name, start, _ = span
            wanted[name].put(start, data)
            self._unproven.add(name, start, data)
            self.cache.counts.add("fetched_bytes", len(data))
            self.cache.stop.check(name)

        spans = [(name, *span) for name, partial in wanted.items() for span in partial.spans]
        self.cache.counts.add("ranges", len(spans))
        self.transport.read_spans(spans, put)

    def hold(self, name: str, partial: Partial) -> None:
        """Fetch what is in a partial copy no second time, when the file itself is fetched."""
        self._held[name] = partial

    def discard(self, name: str, sha256: str) -> bool:
        return self.cache.discard(sha256)

    def _fetch(self, name: str, size: int) -> Fetch:
        """Completes a file from what is here of it."""

        def fetch(part: GrowingFile) -> None:
            # Once: if the whole is not what it should be, nothing of it is believed.
            held = self._held.pop(name, None)
            if held and part.size < size:
                self._fill(part, name, held, size)
            self._fetch_rest(part, name, size)

        return fetch

    def _fill(self, part: GrowingFile, name: str, held: Partial, size: int) -> None:
        """Add what is held and the gaps between, as far as they come at the first attempt."""
        gaps = self.transport.in_order([(name, *gap) for gap in held.gaps(part.size, size)])
        with contextlib.closing(gaps), contextlib.suppress(OSError):
            held.copy(part)
            for data in gaps:
                self._add(part, data)
                held.copy(part)
                self.cache.stop.check(name)

    def _fetch_rest(self, part: GrowingFile, name: str, size: int) -> None:
        """Add all that is not here; whatever there is where the size is not known."""
        for chunk in self.stream(name, lambda: part.size, size):
            if not chunk:
                part.clear()
                continue
            kept = memoryview(chunk)[: (size or LARGEST_SIDECAR) - part.size]
            self._add(part, kept)
            if len(kept) < len(chunk) and not size:
                part.clear()
                raise FormatError(f"{self.url}/{name} is larger than {LARGEST_SIDECAR} bytes")
            if part.size == size:
                return

    def _add(self, part: GrowingFile, data: Bytes) -> None:
        part.add(data)
        self.cache.counts.add("fetched_bytes", len(data))

    def stream(self, name: str, have: Callable[[], int], end: int = 0) -> Generator[bytes]:
        """The bytes after those that the caller has, over as many connections as it takes; b"" means: begin anew.

        end: size of the file; 0: it is not known.
        """
        failures, come, last = 0, 0, time.monotonic()
        if end and have() > end:
            yield b""
        while not end or have() < end:
            try:
                for chunk in self.transport.stream(name, have(), end):
                    failures, come, handed = 0, come + len(chunk), time.monotonic()
                    yield chunk
                    # The server is not to blame for the time that the caller takes.
                    last += time.monotonic() - handed
                    if come >= pace.LEAST:
                        come, last = 0, time.monotonic()
                    self.cache.stop.check(name)
                if end and have() < end:
                    raise Interrupted(f"ended after {have()} of {end} bytes")
                return
            except Interrupted as error:
                failures += 1
                idle, patience = time.monotonic() - last, min(self.patience, error.patience)
                if idle > patience:
                    arrived = f"{come} bytes arrived in" if come else "nothing arrived for"
                    raise TimeoutError(
                        f"{self.url}/{name}: {printable(error)}; {arrived} {idle:.0f} s"
                    ) from error
                wait = random.uniform(0, min(LONGEST_WAIT, 2.0 ** min(failures - 1, 10)))
                # However long a server asks to wait: not beyond what the user has patience for.
                wait = min(max(wait, error.after or 0.0), max(patience - idle, 0.0) + 0.1)
                log.warning("%s/%s: %s; trying again in %.1f s", self.url, name, printable(error), wait)
                self.cache.counts.add("retries")
                self.cache.stop.check(name, seconds=wait)


def open_files(
    path: str | os.PathLike[str], cache: Cache, patience: float, storage_options: dict[str, Any] | None = None
) -> Files:
    """The folder or URL. storage_options: of fsspec's file system for the URL.

    Raises ValueError for a folder that is not there.
    """
    if isinstance(path, str) and "://" in path:
        return _open_remote(path, cache, patience, storage_options)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{printable(folder)}: no such folder")
    return LocalFolder(folder)


def _open_remote(
    url: str, cache: Cache, patience: float, storage_options: dict[str, Any] | None
) -> RemoteFolder:
    """Raises ValueError for a malformed hf:// address, FileNotFoundError or PermissionError as the Hub answers."""
    if url.startswith(("http://", "https://")):
        return RemoteFolder(HttpTransport(url, url), cache, patience)
    if not url.startswith("hf://"):
        return RemoteFolder(FsspecTransport(url, storage_options), cache, patience)
    match = HUB.fullmatch(url)
    if match is None:
        raise ValueError(
            f"{printable(url)!r} is not like hf://datasets/USER/REPO, with @REVISION and /FOLDER if need be"
        )
    repository, revision, folder = match[1], match[2] or "main", match[3] or ""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise OSError(f"{printable(url)}: HF_HUB_OFFLINE is set; unset it, or give a folder on this machine")
    api = HttpTransport(url, f"{constants.ENDPOINT}/api/datasets/{repository}/revision", get_token())
    try:
        answer = RemoteFolder(api, cache, patience).read(
            urllib.parse.quote(revision, safe="%"), LARGEST_ANSWER
        )
        commit = border.text(border.json_object(answer, "answer of the Hub").get("sha"), "sha", COMMIT)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}. Check the name: hf://datasets/USER/REPO; a private one needs HF_TOKEN"
        ) from error
    except FormatError as error:
        raise FormatError(f"{printable(url)}: {error}") from error
    pinned = f"hf://datasets/{repository}@{commit}" + (f"/{folder}" if folder else "")
    base = f"{constants.ENDPOINT}/datasets/{repository}/resolve/{commit}/{folder}"
    return RemoteFolder(HttpTransport(pinned, base, get_token()), cache, patience)
