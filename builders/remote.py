"""Local and remote files behind one `open_source`: seekable, buffered, and retried when the network fails."""

import hashlib
import io
import os
import time
from collections.abc import Callable
from typing import IO, Any

import fsspec

from .errors import DownloadError

_TRIES = 5
_BLOCK_SIZE = 16 * 2**20  # bytes per request


def is_local(location: str) -> bool:
    return "://" not in location


def open_source(location: str, token: str | bool | None = None) -> IO[bytes]:
    """A seekable binary file; a remote one is read in ranges of 16 MiB, each retried when the network fails."""
    if is_local(location):
        return open(location, "rb")
    return io.BufferedReader(_Remote(location, token), _BLOCK_SIZE)


def version_of(location: str, token: str | bool | None) -> str:
    """Changes when the file does: size and time of a local one, what the server tells of a remote one."""
    fs, path = _filesystem(location, token)
    info = fs.info(path)
    known = {key: str(info.get(key)) for key in ("name", "size", "mtime", "ETag", "blob_id", "last_modified")}
    return hashlib.sha256(repr(known).encode()).hexdigest()


def _filesystem(location: str, token: str | bool | None) -> tuple[fsspec.AbstractFileSystem, str]:
    options = {"token": token} if location.startswith("hf://") else {}
    fs, path = fsspec.core.url_to_fs(location, **options)
    return fs, path


class _Remote(io.RawIOBase):
    """A remote file as stateless byte ranges, so that a retry is just the same request again."""

    def __init__(self, url: str, token: str | bool | None) -> None:
        self._url = url
        self._fs, self._path = _filesystem(url, token)
        self._size = int(self._retry(lambda: self._fs.info(self._path)["size"]))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = self._retry(lambda: self._fs.cat_file(self._path, start=self._at, end=self._at + length))
        if len(data) != length:
            raise DownloadError(
                f"{self._url}: asked for {length:,} bytes, got {len(data):,}; the server cannot be streamed from"
            )
        buffer[:length] = data
        self._at += length
        return length

    def _retry(self, request: Callable[[], Any]) -> Any:
        for attempt in range(_TRIES):
            try:
                return request()
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                if attempt == _TRIES - 1:
                    raise DownloadError(f"{self._url}: {type(error).__name__}: {error}") from error
                time.sleep(2**attempt)
        raise AssertionError("unreachable")
