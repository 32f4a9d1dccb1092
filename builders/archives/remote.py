"""Local and remote files behind one `open_file`: seekable, buffered, and tried again for long when the network fails."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable
from typing import IO, Any

import fsspec

from builders.archives.backoff import Patience
from builders.archives.http_file import HttpFile
from builders.archives.read_errors import describe, is_disk_fault, retry_after, verdict, without_query
from builders.core.errors import ArchiveError, DownloadError, MissingSourceError

_BLOCK_SIZE = 16 * 2**20  # bytes per request
# Small members are read several at once; large ones past the buffer.
_LOCAL_BUFFER = 2**15  # bytes


def is_local(location: str) -> bool:
    return "://" not in location


def open_file(location: str, token: str | bool | None = None) -> IO[bytes]:
    """A seekable binary file; a remote one is read in ranges of 16 MiB, each tried for half an hour when the network fails.

    Here and while it is read: ArchiveError where it is gone from its server or the disk cannot read it, RefusedError where it takes
    other credentials, DownloadError where the network stays away.
    """
    if is_local(location):
        return io.BufferedReader(_Local(location), _LOCAL_BUFFER)
    return io.BufferedReader(_Remote(location, token), _BLOCK_SIZE)


def version_of(location: str, token: str | bool | None) -> str:
    """Changes when the file does: size and time of a local one, what the server tells of a remote one."""
    try:
        if is_local(location):
            info = _FsspecFile(location, token).facts()
        else:
            with contextlib.closing(_remote_file(location, token)) as file:
                info = _patiently(location, file.facts)
    except ArchiveError as error:
        raise MissingSourceError(f"{without_query(location)}: {error}") from error
    known = {key: str(info.get(key)) for key in ("name", "size", "mtime", "ETag", "blob_id", "last_modified")}
    return hashlib.sha256(repr(known).encode()).hexdigest()


def _remote_file(url: str, token: str | bool | None) -> "HttpFile | _FsspecFile":
    return HttpFile(url) if url.startswith(("http://", "https://")) else _FsspecFile(url, token)


class _FsspecFile:
    """A file of whatever else fsspec opens, the Hub's among them, with the interface of HttpFile."""

    def __init__(self, url: str, token: str | bool | None) -> None:
        options = {"token": token} if url.startswith("hf://") else {}
        self._fs, self._path = fsspec.core.url_to_fs(url, **options)

    def facts(self) -> dict[str, Any]:
        facts = self._fs.info(self._path)
        if facts.get("size") is None:
            raise DownloadError("cannot be streamed: nothing says how long it is")
        return facts

    def read(self, start: int, end: int, size: int) -> bytes:
        data: bytes = self._fs.cat_file(self._path, start=start, end=end)
        if len(data) != end - start:
            raise DownloadError(f"cannot be streamed: asked for {end - start:,} bytes, got {len(data):,}")
        return data

    def close(self) -> None:
        """The file system is fsspec's to keep."""


def _patiently(url: str, request: Callable[[], Any]) -> Any:
    """The answer to a request, made again while what goes wrong may pass."""
    patience = Patience()
    while True:
        try:
            return request()
        except Exception as error:  # of whatever kind: it comes from a file system that is not ours
            if (fault := verdict(error, url)) is not None:
                raise fault from error
            what = f"{without_query(url)}: {describe(error)}"
            if not patience.wait(what, retry_after(error)):
                raise DownloadError(f"{what}, for half an hour. Run again to go on") from error


class _Local(io.FileIO):
    """A file on a disk that may not be able to read all of it."""

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            _raise_lost(error)
            raise

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            _raise_lost(error)
            raise


def _raise_lost(error: OSError) -> None:
    if is_disk_fault(error):
        raise ArchiveError(f"the disk cannot read it: {error}") from error


class _Remote(io.RawIOBase):
    """A remote file as stateless byte ranges, so that a retry is just the same request again."""

    def __init__(self, url: str, token: str | bool | None) -> None:
        self._url, self._at = url, 0
        self._file = _remote_file(url, token)
        self._size = int(_patiently(url, self._file.facts)["size"])

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
        start, end = self._at, self._at + length
        data = _patiently(self._url, lambda: self._file.read(start, end, self._size))
        buffer[:length] = data
        self._at += length
        return length

    def readall(self) -> bytes:
        """The rest, in requests of a block each: Python's own would ask for 8 KiB at a time."""
        parts = []
        while self._at < self._size:
            block = bytearray(min(_BLOCK_SIZE, self._size - self._at))
            self.readinto(block)
            parts.append(bytes(block))
        return b"".join(parts)

    def close(self) -> None:
        self._file.close()
        super().close()
