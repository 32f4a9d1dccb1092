"""Files over HTTP: resumed at the byte, retried with patience, checked, and named only when whole.

A file appears under its name only when its size and checksum, where known, are right; until then it is NAME.part. Beside it NAME.part.of
says of which version of the file it is a part (its ETag or time), so that yesterday's half is never joined to today's.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

import huggingface_hub
from huggingface_hub.utils import httpx

from builders.archives.backoff import ENOUGH, Patience, may_pass
from builders.archives.read_errors import refusal, without_query
from builders.archives.sources import Source
from builders.core.errors import DownloadError

_CHUNK = 2**16  # bytes; what a broken connection loses at most
_TIMEOUT = 60  # seconds without a byte
_LARGEST = 100 * 2**30  # bytes of a file whose size nobody tells; no archive of ours is that large
_LONGEST_NUMBER = 18  # digits of a size


class _Stop(DownloadError):
    """A failure that every further file would share."""


class _Transient(Exception):
    """Worth another try; `asked` is the server's Retry-After."""

    def __init__(self, reason: str, asked: str | None = None) -> None:
        super().__init__(reason)
        self.asked = asked


@dataclass
class Downloader:
    """Fetches sources into `folder`; `done`, `kept` and `failed` tell what became of each."""

    name: str
    folder: str
    bar: Any
    done: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def fetch_all(self, sources: list[Source], num_threads: int) -> None:
        ENOUGH.clear()
        with ThreadPoolExecutor(num_threads) as pool:
            try:
                list(pool.map(self._fetch_or_note, sources))
            except BaseException:  # Ctrl-C: nobody waits out an outage now
                self.stopping.set()
                ENOUGH.set()
                raise

    def _fetch_or_note(self, source: Source) -> None:
        if self.stopping.is_set():
            self.failed[source.path] = "not tried"
            return
        try:
            (self.done if self.fetch(source) else self.kept).append(source.path)
        except DownloadError as error:
            self.failed[source.path] = str(error)
            if isinstance(error, _Stop):
                self.stopping.set()

    def fetch(self, source: Source) -> bool:
        """True if the file was fetched, False if it was there already. Raises DownloadError."""
        target = os.path.join(self.folder, source.path)
        if os.path.isfile(target) and source.size in (None, os.path.getsize(target)):
            return False
        _forget_unknown(source, target + ".part")
        patience, had = Patience(), -1
        while True:
            try:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                self._attempt(source, target)
                return True
            except (_Transient, httpx.TransportError) as error:
                size = _size(target + ".part")
                patience, had = Patience() if size > had else patience, size
                what = f"{source.path}: {without_query(error) or type(error).__name__}"
                if self.stopping.is_set():
                    raise DownloadError(f"{what}. Run again to go on") from None
                if not patience.wait(what, getattr(error, "asked", None)):
                    raise DownloadError(f"{what}, for half an hour. Run again to go on") from None
            except httpx.HTTPError as error:  # too many redirects, an odd encoding
                raise DownloadError(
                    f"{source.path}: {type(error).__name__}: {without_query(error)}"
                ) from None
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise DownloadError(f"{source.path}: {without_query(error)}") from None
                free = shutil.disk_usage(self.folder).free / 1e9
                raise _Stop(
                    f"{source.path}: the disk of {self.folder} is full ({free:.1f} GB free). Make room, or choose fewer --parts; "
                    "then run again: what was fetched stays"
                ) from None

    def _attempt(self, source: Source, target: str) -> None:
        part = target + ".part"
        have, version = _size(part), _read_version(part)
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and version:
            headers["If-Range"] = version
        with self._request(source, headers) as response:
            total = self._check(source, response, have)
            if response.status_code != 206:
                have = 0  # the server sends all of it, asked for or not
            elif version and _version(response) not in ("", version):
                _remove(part)  # by a server that does not know If-Range
                raise _Transient("the file has changed since its first half arrived")
            _write_version(part, _version(response))
            digest = hashlib.sha256()
            with open(part, "r+b" if have else "wb") as file:
                for chunk in iter(lambda: file.read(_CHUNK), b"") if have else ():
                    digest.update(chunk)
                file.seek(have)
                self._copy(source, response, file, digest, total)
        _verify(source, part, total, digest.hexdigest(), _published_sha256(response) or source.sha256)
        os.replace(part, target)
        _remove(part)

    def _copy(
        self, source: Source, response: httpx.Response, file: IO[bytes], digest: Any, total: int | None
    ) -> None:
        most = _LARGEST if total is None else total
        for chunk in response.iter_bytes(_CHUNK):
            if file.tell() == 0 and _is_html(chunk):
                raise self._refused(source, "an HTML page came instead of the file")
            if file.tell() + len(chunk) > most:
                _remove(file.name)
                raise DownloadError(
                    f"{source.path}: the server sends more than the {most:,} bytes that it has"
                )
            file.write(chunk)
            digest.update(chunk)
            self.bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())

    @contextlib.contextmanager
    def _request(self, source: Source, headers: dict[str, str]) -> Iterator[httpx.Response]:
        url = source.url
        if url.startswith("hf://"):
            repository, path = "/".join(url.split("/")[3:5]), "/".join(url.split("/")[5:])
            url = huggingface_hub.hf_hub_url(repository, path, repo_type="dataset")
            headers = headers | huggingface_hub.utils.build_hf_headers()
        # identity: a range counts bytes of the file, not of its compressed transfer
        headers = {"Accept-Encoding": "identity"} | headers
        with httpx.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
            yield response

    def _check(self, source: Source, response: httpx.Response, have: int) -> int | None:
        """The file's size as the server gives it, or else as published. Raises for every answer that is not the file."""
        status = response.status_code
        if may_pass(status):
            raise _Transient(f"the server answered {status}", response.headers.get("Retry-After"))
        if status in (401, 403):
            raise self._refused(source, f"the server answered {status}")
        if status in (404, 410):
            raise DownloadError(
                f"{source.path}: not there ({status}). Its publisher moved it, or there is no such part: check --parts"
            )
        if status == 416:  # what we have is as long as the file, or longer
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            _remove(os.path.join(self.folder, source.path) + ".part")
            raise _Transient(f"{have:,} bytes had arrived of a file of {total or 'unknown'}")
        if status not in (200, 206):
            raise DownloadError(f"{source.path}: the server answered {status}")
        if status == 206:
            sent, _, total = response.headers.get("Content-Range", "").partition("/")
            if not sent.startswith(f"bytes {have}-"):
                _remove(os.path.join(self.folder, source.path) + ".part")
                raise _Transient(f"asked for the bytes from {have:,} on, the server sends {sent or 'others'}")
        else:
            total = response.headers.get("Content-Length", "")
        size = int(total) if total.isdecimal() and len(total) <= _LONGEST_NUMBER else None
        if None not in (size, source.size) and size != source.size:
            raise DownloadError(
                f"{source.path}: published with {source.size:,} bytes, the server has {size:,}; the set has changed"
            )
        return source.size if size is None else size

    def _refused(self, source: Source, what: str) -> DownloadError:
        if self.name == "sa1b" and not source.url.startswith("hf://"):
            from builders.sa1b import expired

            return _Stop(f"{source.path}: {expired(what)} --links; what was fetched stays")
        kind = _Stop if source.url.startswith("hf://") else DownloadError
        return kind(f"{source.path}: {refusal(source.url, what)}")


def _verify(source: Source, part: str, total: int | None, digest: str, published: str | None) -> None:
    size = _size(part)
    if total is not None and size < total:
        raise _Transient(f"{size:,} of {total:,} bytes arrived")
    if total is not None and size > total:
        _remove(part)
        raise _Transient(f"{size:,} bytes arrived of a file of {total:,}")
    if published is not None and digest != published:
        _remove(part)
        raise DownloadError(
            f"{source.path}: sha256 is {digest}, published is {published}. It was damaged on its way: run again"
        )


def _version(response: httpx.Response) -> str:
    """What tells this version of the file from another, as If-Range takes it; nothing where the server does not say."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _read_version(part: str) -> str:
    try:
        with open(part + ".of", encoding="ascii") as file:
            return file.read()
    except (FileNotFoundError, UnicodeError):
        return ""


def _write_version(part: str, version: str) -> None:
    with open(part + ".of", "w", encoding="ascii", errors="ignore") as file:
        file.write(version)


def _forget_unknown(source: Source, part: str) -> None:
    """Drop what an earlier run left of nobody knows which version, unless a checksum will tell."""
    if source.sha256 is None and not _read_version(part):
        _remove(part)


def _remove(part: str) -> None:
    for path in (part, part + ".of"):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _published_sha256(response: httpx.Response) -> str | None:
    """The Hub names a large file's sha256 in the answer that leads on to its storage."""
    for answer in (*response.history, response):
        tag = answer.headers.get("X-Linked-Etag", "").strip('"')
        if len(tag) == 64:
            return tag
    return None


def _is_html(chunk: bytes) -> bool:
    return chunk[:512].lstrip().lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body"))


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0
