"""How the bytes of a file elsewhere come here: http(s), or whatever fsspec opens. What fails says whether it may pass.

A user name, password or signed query in a URL is sent to the server and told to nobody else (printable.py).
"""

import contextlib
import errno
import http.client
import math
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Generator, Iterator, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from loader import pace
from loader.http_ranges import AHEAD, HttpRanges, Put, Span
from loader.printable import printable

CHUNK = 1 << 20
LARGEST = 1 << 28  # bytes of a file whose size is not known: folders.py, remote.py
TIMEOUT = 30.0  # seconds without a byte, after which a connection counts as dead
RETRIED = {408, 425, 429, 500, 502, 503, 504}
UNREACHED = 30.0  # seconds to try a server that never answered, where the network itself is missing
PATH = "/%:@!$&()*+,;=~"  # stays in a URL as it is; `'` does not, for webdataset's shell

_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
_NO_NETWORK = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN}
# Of boto's errors those that no waiting mends, by name, for boto need not be installed.
_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"}
_OPTIONS = {"ParamValidationError", "InvalidRegionError", "NoRegionError", "UnknownServiceError"}


class Interrupted(OSError):
    """Worth another try. after: seconds the server asks to wait. patience: seconds that are enough, where no more makes sense."""

    def __init__(self, message: str, after: float | None = None, patience: float = math.inf) -> None:
        super().__init__(message)
        self.after, self.patience = after, patience


class Transport(Protocol):
    url: str  # fit for logs and messages

    def address(self, name: str) -> str:
        """A URL that others can open, with the secrets that it takes."""

    def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
        """The bytes of a file from `start`; first b"" if it begins at 0 instead. end: size of the file; 0: it is not known.

        Raises FileNotFoundError, PermissionError, Interrupted, or an OSError that no waiting mends.
        """

    def read_spans(self, spans: Sequence[Span], put: Put) -> None:
        """Hand each span's bytes to `put`, many at once, in any order and from any thread.

        Raises OSError where some could not be had at the first attempt, and what `put` raises.
        """

    def in_order(self, spans: Sequence[Span]) -> Generator[bytes]:
        """Each span's bytes in turn, while the next ones are on their way. Raises OSError as above."""


class HttpTransport:
    """Files below an http(s) address. token: sent to that address alone, not to where it redirects; a login in the address likewise."""

    def __init__(self, url: str, base: str, token: str | None = None) -> None:
        parts = urllib.parse.urlsplit(base)
        self.url = printable(url)
        self._host = parts.netloc.rpartition("@")[2]
        self._parts = parts._replace(path=urllib.parse.quote(parts.path.rstrip("/"), safe=PATH), fragment="")
        self._authorization = f"Bearer {token}" if token else None
        if parts.username is not None:
            login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
            self._authorization = f"Basic {b64encode(login.encode()).decode()}"
        self._reached = False
        self._ranges = HttpRanges(self._host, self._authorization, TIMEOUT)

    def address(self, name: str) -> str:
        query = urllib.parse.quote(self._parts.query, safe=PATH + "?")
        parts = self._parts._replace(
            path=f"{self._parts.path}/{urllib.parse.quote(name, safe=PATH)}", query=query
        )
        return urllib.parse.urlunsplit(parts)

    def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
        address = urllib.parse.urlsplit(self.address(name))._replace(netloc=self._host)
        # The address is one of http or https, by which this transport was chosen; redirects keep to them.
        request = urllib.request.Request(urllib.parse.urlunsplit(address))  # noqa: S310
        request.add_header("User-Agent", "latentmill")
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self._authorization:
            request.add_unredirected_header("Authorization", self._authorization)
        try:
            with pace.opener().open(request, timeout=TIMEOUT) as response:
                self._reached = True
                expected, seen = _length(response.headers["Content-Length"]), 0
                if start and response.status != 206:
                    yield b""
                while chunk := response.read1(CHUNK):
                    seen += len(chunk)
                    yield chunk
            if expected is not None and seen < expected:
                raise Interrupted(f"connection closed after {seen} of {expected} bytes")
        except urllib.error.HTTPError as error:
            with error:
                self._reached = True
                if error.code != 416 or not start:
                    raise self.meaning(error, name) from error
            yield b""  # there is nothing from there on: what we have is whole, or wrong
            yield from self.stream(name, 0)
        except http.client.InvalidURL as error:
            raise OSError(f"{self.url}: not a URL: {printable(error)}") from error
        # A ValueError: what is no address, where the server redirects to it.
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, Interrupted):
                raise
            raise self._unreached(error) from error

    def read_spans(self, spans: Sequence[Span], put: Put) -> None:
        self._ranges.read(spans, self.address, put)

    def in_order(self, spans: Sequence[Span]) -> Generator[bytes]:
        return self._ranges.in_order(spans, self.address)

    def meaning(self, error: urllib.error.HTTPError, name: str) -> OSError:
        what = printable(f"{self.url}/{name}: HTTP {error.code} {error.reason}")
        if error.code in (404, 410):
            return FileNotFoundError(what)
        if error.code in (401, 403):
            return PermissionError(
                f"{what}. Is the dataset gated or private? Then set HF_TOKEN, or run `hf auth login`"
            )
        if error.code in RETRIED:
            return Interrupted(f"HTTP {error.code}", _seconds(error.headers.get("Retry-After")))
        return OSError(what)

    def _unreached(self, error: Exception) -> OSError:
        """A name that nobody knows is no outage, unless the server had answered before."""
        reason = getattr(error, "reason", error)
        what = printable(reason) or type(reason).__name__
        if self._reached:
            return Interrupted(what)
        if isinstance(reason, UnicodeError) or (
            isinstance(reason, socket.gaierror) and reason.errno in _NO_SUCH_NAME
        ):
            return OSError(
                f"{self.url}: no server of the name {printable(self._host)} is known ({what}); check the spelling, "
                "and the network"
            )
        missing = isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) in _NO_NETWORK
        return Interrupted(what, patience=UNREACHED if missing else math.inf)


class FsspecTransport:
    """Any other URL that fsspec has a file system for. options: as of that file system; they may hold secrets.

    Raises ValueError for an unknown protocol, and for one whose package is not installed, which it names.
    """

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url, self._url, self._options = printable(url.rstrip("/")), url.rstrip("/"), options or {}
        try:
            self._folder()
        except ImportError as error:
            raise ValueError(
                f"{self.url}: {printable(error)}. Install what it names, as in `pip install s3fs`, gcsfs, adlfs or aiohttp"
            ) from error
        except TypeError as error:
            raise ValueError(f"storage_options: {self.url} does not take them: {printable(error)}") from error

    def address(self, name: str) -> str:
        return f"{self._url}/{name}"

    def open(self, name: str) -> Any:
        """The file, open for reading."""
        files, root = self._folder()
        return files.open(f"{root}/{name}", "rb")

    def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
        try:
            if not end:
                # In one request: between two, a manifest that grows may become another file.
                yield from [b""] if start else []
                yield self._whole(name)
                return
            with self.open(name) as file:
                file.seek(start)
                while chunk := file.read(CHUNK):
                    yield chunk
        except (FileNotFoundError, PermissionError) as error:
            raise type(error)(f"{self.url}/{name}: {printable(error)}") from error
        except GeneratorExit:
            raise
        except Exception as error:
            raise self.meaning(error) from error

    def read_spans(self, spans: Sequence[Span], put: Put) -> None:
        try:
            files, root = self._folder()
            names, starts, ends = zip(*((f"{root}/{n}", start, end) for n, start, end in spans), strict=True)
            found = files.cat_ranges(list(names), list(starts), list(ends), on_error="return")
        except Exception as error:
            raise self.meaning(error) from error
        for span, data in zip(spans, found, strict=True):
            if not isinstance(data, bytes) or len(data) != span[2] - span[1]:
                raise (
                    self.meaning(data) if isinstance(data, Exception) else OSError("a range of other bytes")
                )
            put(span, data)

    def in_order(self, spans: Sequence[Span]) -> Generator[bytes]:
        for begin in range(0, len(spans), AHEAD):
            found: dict[Span, bytes] = {}
            self.read_spans(spans[begin : begin + AHEAD], found.__setitem__)
            yield from map(found.__getitem__, spans[begin : begin + AHEAD])

    def _whole(self, name: str) -> bytes:
        """A small file as it is at one moment, and no more of it than anybody takes."""
        files, root = self._folder()
        try:
            return bytes(files.cat_file(f"{root}/{name}", start=0, end=LARGEST + 1))
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            if files.size(f"{root}/{name}"):
                raise
            return b""  # of which there is no range

    def meaning(self, error: Exception) -> OSError:
        what, kind = f"{type(error).__name__}: {printable(error)}", type(error).__name__
        if kind in _CREDENTIALS:
            return PermissionError(f"{self.url}: {what}. Give them in the environment, or as storage_options")
        if kind in _OPTIONS or isinstance(error, TypeError | AttributeError | NotImplementedError):
            return OSError(f"{self.url}: {what}. Check the URL and storage_options")
        return Interrupted(what)

    def _folder(self) -> Any:
        """(file system, path). fsspec makes one for each process and thread, and keeps it: they must not share it."""
        import fsspec

        return fsspec.core.url_to_fs(self._url, **self._options)


def _length(content_length: str | None) -> int | None:
    """Raises Interrupted for a header that is no number."""
    if content_length is None:
        return None
    if not content_length.isascii() or not content_length.isdigit() or len(content_length) > 18:
        raise Interrupted(f"Content-Length: {printable(content_length[:80])}")
    return int(content_length)


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header: seconds, or a date; at least 0. None where it is neither."""
    if retry_after is None:
        return None
    seconds = math.nan
    with contextlib.suppress(ValueError, TypeError, OverflowError, IndexError):
        seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
    with contextlib.suppress(ValueError):
        seconds = float(retry_after)
    return None if math.isnan(seconds) else max(0.0, seconds)
