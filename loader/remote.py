"""Folders elsewhere: hf://datasets/USER/REPO[@REVISION][/FOLDER], https://..., or any URL that fsspec opens.

A fetch goes on at the byte where it broke off, waits as long as the server asks, and backs off with full jitter; it gives up
only when nothing at all arrived for `patience` seconds.
"""

import contextlib
import http.client
import json
import logging
import os
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol

from loader.cache import Cache, Fetch, Stopped
from loader.folders import Files, LocalFolder
from loader.format import FormatError

log = logging.getLogger("loader")

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte, after which a connection counts as dead
LONGEST_WAIT = 60.0
HUB = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+?))?/?")
WRONG_BYTES = 2  # times that a file whose hash is wrong is fetched again
RETRIED = {408, 425, 429, 500, 502, 503, 504}


class Interrupted(OSError):
    """Worth another try. after: seconds the server asks to wait."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class Transport(Protocol):
    url: str

    def address(self, name: str) -> str:
        """A URL that others can open."""

    def stream(self, name: str, start: int) -> Iterator[bytes]:
        """The bytes of a file from `start`; first b"" if the server begins at 0 instead.

        Raises FileNotFoundError, PermissionError, or Interrupted.
        """


class RemoteFolder:
    """Files of a transport, fetched into the cache. patience: seconds without a byte before giving up."""

    def __init__(self, transport: Transport, cache: Cache, patience: float) -> None:
        self.transport, self.cache, self.patience = transport, cache, patience
        self.url = transport.url

    def address(self, name: str) -> str:
        return self.transport.address(name)

    def read(self, name: str) -> bytes:
        data = bytearray()
        for chunk in self._stream(name, data.__len__):
            if not chunk:
                data.clear()
            data += chunk
        return bytes(data)

    def open(self, name: str, size: int, sha256: str) -> int:
        for _ in range(WRONG_BYTES):
            try:
                return self.cache.open(sha256, size, f"{self.url}/{name}", self._fetch(name, size))
            except FormatError as error:
                log.warning("%s: fetching it again", error)
        return self.cache.open(sha256, size, f"{self.url}/{name}", self._fetch(name, size))

    def prefetch(self, name: str, size: int, sha256: str) -> bool:
        return self.cache.prefetch(sha256, size, f"{self.url}/{name}", self._fetch(name, size))

    def discard(self, name: str, sha256: str) -> bool:
        return self.cache.discard(sha256)

    def _fetch(self, name: str, size: int) -> Fetch:
        """Completes the file of a descriptor from what it holds."""

        def fetch(descriptor: int) -> None:
            for chunk in self._stream(name, lambda: os.fstat(descriptor).st_size, size):
                if chunk:
                    os.pwrite(descriptor, chunk, os.fstat(descriptor).st_size)
                    self.cache.count("fetched_bytes", len(chunk))
                else:
                    os.truncate(descriptor, 0)

        return fetch

    def _stream(self, name: str, have: Callable[[], int], size: int = 0) -> Iterator[bytes]:
        """The bytes after those that the caller has, over as many connections as it takes; b"" means: begin anew."""
        failures, last = 0, time.monotonic()
        if size and have() > size:
            yield b""
        while not size or have() < size:
            try:
                for chunk in self.transport.stream(name, have()):
                    failures, last = 0, time.monotonic()
                    yield chunk
                    if self.cache.stop.is_set():
                        raise Stopped(name)
                if size and have() < size:
                    raise Interrupted(f"ended after {have()} of {size} bytes")
                return
            except Interrupted as error:
                failures += 1
                idle = time.monotonic() - last
                if idle > self.patience:
                    raise TimeoutError(
                        f"{self.url}/{name}: {error}; nothing arrived for {idle:.0f} s"
                    ) from error
                wait = random.uniform(0, min(LONGEST_WAIT, 2.0 ** (failures - 1)))
                wait = max(wait, error.after or 0.0)
                log.warning("%s/%s: %s; trying again in %.1f s", self.url, name, error, wait)
                self.cache.count("retries")
                if self.cache.stop.wait(wait):
                    raise Stopped(name) from error


class HttpTransport:
    """Files below an http(s) address. token: sent to that address alone, not to where it redirects."""

    def __init__(self, url: str, base: str, token: str | None = None) -> None:
        self.url, self._base, self._token = url, base.rstrip("/"), token

    def address(self, name: str) -> str:
        return f"{self._base}/{urllib.parse.quote(name, safe='/%')}"

    def stream(self, name: str, start: int) -> Iterator[bytes]:
        request = urllib.request.Request(self.address(name))
        request.add_header("User-Agent", "latentmill")
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                if start and response.status != 206:
                    yield b""
                expected, seen = response.headers["Content-Length"], 0
                while chunk := response.read1(CHUNK):
                    seen += len(chunk)
                    yield chunk
            if expected is not None and seen < int(expected):
                raise Interrupted(f"connection closed after {seen} of {expected} bytes")
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 416 or not start:
                    raise self._meaning(error, name) from error
            yield b""  # there is nothing from there on: what we have is whole, or wrong
            yield from self.stream(name, 0)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, Interrupted):
                raise
            raise Interrupted(str(error) or type(error).__name__) from error

    def _meaning(self, error: urllib.error.HTTPError, name: str) -> OSError:
        what = f"{self.url}/{name}: HTTP {error.code} {error.reason}"
        if error.code in (404, 410):
            return FileNotFoundError(what)
        if error.code in (401, 403):
            return PermissionError(
                f"{what}. Is the dataset gated or private? Then set HF_TOKEN, or run `hf auth login`"
            )
        if error.code in RETRIED:
            return Interrupted(f"HTTP {error.code}", _seconds(error.headers.get("Retry-After")))
        return OSError(what)


class FsspecTransport:
    """Any other URL that fsspec has a file system for."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._folder()  # an unknown protocol shows at once

    def address(self, name: str) -> str:
        return f"{self.url}/{name}"

    def stream(self, name: str, start: int) -> Iterator[bytes]:
        files, root = self._folder()
        try:
            with files.open(f"{root}/{name}", "rb") as file:
                file.seek(start)
                while chunk := file.read(CHUNK):
                    yield chunk
        except (FileNotFoundError, PermissionError):
            raise
        except OSError as error:
            raise Interrupted(str(error) or type(error).__name__) from error

    def _folder(self) -> Any:
        """(file system, path). fsspec makes one for each process and thread, and keeps it: they must not share it."""
        import fsspec

        return fsspec.core.url_to_fs(self.url)


def open_files(path: str | os.PathLike[str], cache: Cache, patience: float) -> Files:
    """Raises ValueError for a folder that is not there."""
    if isinstance(path, str) and "://" in path:
        return _open_remote(path, cache, patience)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    return LocalFolder(folder)


def _open_remote(url: str, cache: Cache, patience: float) -> RemoteFolder:
    """Raises ValueError for a malformed hf:// address, FileNotFoundError or PermissionError as the Hub answers."""
    if url.startswith(("http://", "https://")):
        return RemoteFolder(HttpTransport(url.rstrip("/"), url), cache, patience)
    if not url.startswith("hf://"):
        return RemoteFolder(FsspecTransport(url), cache, patience)
    match = HUB.fullmatch(url)
    if match is None:
        raise ValueError(
            f"{url!r} is not like hf://datasets/USER/REPO, with @REVISION and /FOLDER if need be"
        )
    repository, revision, folder = match[1], match[2] or "main", match[3] or ""
    from huggingface_hub import constants, get_token

    api = HttpTransport(url, f"{constants.ENDPOINT}/api/datasets/{repository}/revision", get_token())
    commit = json.loads(RemoteFolder(api, cache, patience).read(urllib.parse.quote(revision, safe="%")))[
        "sha"
    ]
    pinned = f"hf://datasets/{repository}@{commit}" + (f"/{folder}" if folder else "")
    base = f"{constants.ENDPOINT}/datasets/{repository}/resolve/{commit}/{folder}"
    return RemoteFolder(HttpTransport(pinned, base, get_token()), cache, patience)


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header: seconds, or a date."""
    if retry_after is None:
        return None
    with contextlib.suppress(ValueError):
        return float(retry_after)
    with contextlib.suppress(ValueError):
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    return None
