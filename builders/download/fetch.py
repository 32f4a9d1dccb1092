"""Files over HTTP: resumed at the byte, retried with patience, checked, and named only when whole.

A file appears under its name only when its size and checksum, where known, are right; until then it is NAME.part. Beside it NAME.part.of
says of which version of the file it is a part (its ETag or time), so that yesterday's half is never joined to today's.
"""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import huggingface_hub
from huggingface_hub.utils import httpx

from builders.archives import backoff
from builders.archives.backoff import Patience, status_may_pass
from builders.archives.pace import at_pace
from builders.archives.read_errors import refusal, without_query
from builders.archives.sources import Source
from builders.core.errors import DownloadError
from builders.download.part import PartialFile

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
        with (
            backoff.until(self.stopping),
            ThreadPoolExecutor(num_threads, initializer=backoff.follow()) as pool,
        ):
            try:
                list(pool.map(self._fetch_or_note, sources))
            except BaseException:  # Ctrl-C: nobody waits out an outage now
                self.stopping.set()
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
        part = PartialFile(target)
        if source.sha256 is None and not part.version:
            part.remove()  # what an earlier run left of nobody knows which version; else the checksum will tell
        patience, had = Patience(), -1
        while True:
            try:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                self._attempt(source, part)
                return True
            except (_Transient, httpx.TransportError) as error:
                size = part.size
                patience, had = Patience() if size > had else patience, size
                what = f"{source.path}: {without_query(error) or type(error).__name__}"
                if self.stopping.is_set() or not patience.wait(what, getattr(error, "asked", None)):
                    long = "" if self.stopping.is_set() else ", for half an hour"
                    raise DownloadError(f"{what}{long}. Run again to go on") from None
            except (httpx.HTTPError, httpx.InvalidURL) as error:  # too many redirects, an odd encoding
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

    def _attempt(self, source: Source, part: PartialFile) -> None:
        have, version = part.size, part.version
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and version:
            headers["If-Range"] = version
        with _request(source.url, headers) as response:
            total = self._check(source, response, part, have)
            if response.status_code != 206:
                have = 0  # the server sends all of it, asked for or not
            elif version and _version(response) not in ("", version):
                part.remove()  # by a server that does not know If-Range
                raise _Transient("the file has changed since its first half arrived")
            digest = self._copy(source, response, part, have, _LARGEST if total is None else total)
        _verify(source, part, total, digest, _published_sha256(response) or source.sha256)
        part.name()

    def _copy(self, source: Source, response: httpx.Response, part: PartialFile, have: int, most: int) -> str:
        """Write the answer behind the first `have` bytes; the sha256 of all."""
        file, digest = part.open(have, _version(response))
        with file:
            for chunk in at_pace(response):
                if file.tell() == 0 and _is_html(chunk):
                    raise self._refused(source, "an HTML page came instead of the file")
                if file.tell() + len(chunk) > most:
                    part.remove()
                    raise DownloadError(
                        f"{source.path}: the server sends more than the {most:,} bytes that it has"
                    )
                file.write(chunk)
                digest.update(chunk)
                self.bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _check(self, source: Source, response: httpx.Response, part: PartialFile, have: int) -> int | None:
        """The file's size as the server gives it, or else as published. Raises for every answer that is not the file."""
        status = response.status_code
        if status_may_pass(status):
            raise _Transient(f"the server answered {status}", response.headers.get("Retry-After"))
        if status in (401, 403):
            raise self._refused(source, f"the server answered {status}")
        if status in (404, 410):
            raise DownloadError(
                f"{source.path}: not there ({status}). Its publisher moved it, or there is no such part: check --parts"
            )
        sent, _, total = response.headers.get("Content-Range", "").partition("/")
        if status == 416:  # what we have is as long as the file, or longer
            part.remove()
            raise _Transient(f"{have:,} bytes had arrived of a file of {total or 'unknown'}")
        if status not in (200, 206):
            raise DownloadError(f"{source.path}: the server answered {status}")
        if status == 206 and not sent.startswith(f"bytes {have}-"):
            part.remove()
            raise _Transient(f"asked for the bytes from {have:,} on, the server sends {sent or 'others'}")
        size = _length(total if status == 206 else response.headers.get("Content-Length", ""))
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


@contextlib.contextmanager
def _request(url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    if url.startswith("hf://"):
        repository, path = "/".join(url.split("/")[3:5]), "/".join(url.split("/")[5:])
        url = huggingface_hub.hf_hub_url(repository, path, repo_type="dataset")
        headers = headers | huggingface_hub.utils.build_hf_headers()
    # identity: a range counts bytes of the file, not of its compressed transfer
    headers = {"Accept-Encoding": "identity"} | headers
    with httpx.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response:
        yield response


def _length(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER else None


def _verify(source: Source, part: PartialFile, total: int | None, digest: str, published: str | None) -> None:
    size = part.size
    if total is not None and size < total:
        raise _Transient(f"{size:,} of {total:,} bytes arrived")
    if total is not None and size > total:
        part.remove()
        raise _Transient(f"{size:,} bytes arrived of a file of {total:,}")
    if published is not None and digest != published:
        part.remove()
        raise DownloadError(
            f"{source.path}: sha256 is {digest}, published is {published}. It was damaged on its way: run again"
        )


def _version(response: httpx.Response) -> str:
    """What tells this version of the file from another, as If-Range takes it; nothing where the server does not say."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified", "")


def _published_sha256(response: httpx.Response) -> str | None:
    """The Hub names a large file's sha256 in the answer that leads on to its storage."""
    for answer in (*response.history, response):
        tag = answer.headers.get("X-Linked-Etag", "").strip('"')
        if len(tag) == 64:
            return tag
    return None


def _is_html(chunk: bytes) -> bool:
    return chunk[:512].lstrip().lower().startswith((b"<!doctype html", b"<html", b"<head", b"<body"))
