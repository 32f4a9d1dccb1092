"""Byte ranges of files over http, many at once, over connections that stay open.

Nothing is tried twice here, and an answer that is not just what was asked for is an error: whoever asks has another way to
the bytes.
"""

import http.client
import re
import ssl
import threading
import urllib.parse
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

from loader import pace
from loader.printable import printable

AT_ONCE = 32  # connections
AHEAD = 4  # connections where ranges are taken in order
HOPS = 5  # redirects in turn
LARGEST_REDIRECT = 1 << 16  # bytes of what a server says beside
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\d{1,18}|\*)")
Span = tuple[str, int, int]  # name of a file, first byte, the byte behind the last
Put = Callable[[Span, bytes], None]


class HttpRanges:
    """authorization: sent to `host` alone, not to where it redirects. timeout: seconds without a byte."""

    def __init__(self, host: str, authorization: str | None, timeout: float) -> None:
        self._host, self._authorization, self._timeout = host, authorization, timeout
        self._proven = False
        # Where a file was found to lie: a redirection is followed once, not for every range.
        self._found: dict[str, str] = {}

    def read(self, spans: Sequence[Span], address: Callable[[str], str], put: Put) -> None:
        """Hand each span's bytes to `put`, in any order and from several threads.

        Raises OSError where one of them could not be had, whatever `put` raises.
        """
        _refuse_a_proxy(address(spans[0][0]))
        connections = _Connections(self._timeout)

        def read_one(span: Span) -> None:
            name, start, end = span
            put(span, self._get(connections, address(name), start, end))

        pool = ThreadPoolExecutor(min(AT_ONCE, len(spans)), thread_name_prefix="loader-ranges")
        try:
            spans = list(spans)
            if not self._proven:  # one, before a server that ignores ranges sends so many whole files
                pool.submit(read_one, spans.pop(0)).result()
                self._proven = True
            for done in [pool.submit(read_one, span) for span in _file_by_file(spans)]:
                done.result()
        except (http.client.HTTPException, UnicodeError) as error:
            raise OSError(f"{type(error).__name__}: {printable(error)}") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            connections.close()

    def in_order(self, spans: Sequence[Span], address: Callable[[str], str]) -> Generator[bytes]:
        """Each span's bytes in turn, while the next ones are on their way. Raises OSError where one could not be had."""
        connections, waiting = _Connections(self._timeout), deque[Future[bytes]]()
        pool = ThreadPoolExecutor(AHEAD, thread_name_prefix="loader-ranges")
        try:
            for name, start, end in spans:
                _refuse_a_proxy(address(name))
                waiting.append(pool.submit(self._get, connections, address(name), start, end))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except (http.client.HTTPException, UnicodeError) as error:
            raise OSError(f"{type(error).__name__}: {printable(error)}") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            connections.close()

    def _get(self, connections: "_Connections", address: str, start: int, end: int) -> bytes:
        url = known = self._found.get(address, address)
        for _ in range(HOPS):
            parts = urllib.parse.urlsplit(url)
            headers = {"User-Agent": "latentmill", "Range": f"bytes={start}-{end - 1}"}
            if self._authorization and parts.netloc.rpartition("@")[2] == self._host:
                headers["Authorization"] = self._authorization
            with connections.get(parts, headers) as response:
                if location := _redirected(response):
                    _end(response, LARGEST_REDIRECT)
                    onwards = _onwards(url, location)
                    if parts.scheme == "https" and not onwards.startswith("https://"):
                        raise OSError("redirected from https to another protocol")
                    url = onwards
                    continue
                if response.status >= 400 and known != address:  # a signed address that is over
                    self._found.pop(address, None)
                    _end(response, LARGEST_REDIRECT)
                    url = known = address
                    continue
                data = _body(response, start, end)
            self._found[address] = url
            return data
        raise OSError(f"redirected more than {HOPS} times")


class _Connections:
    """One for each thread and server."""

    def __init__(self, timeout: float) -> None:
        self._timeout, self._of_threads = timeout, threading.local()
        self._all: list[http.client.HTTPConnection] = []
        self._secure: ssl.SSLContext | None = None

    def get(self, parts: urllib.parse.SplitResult, headers: dict[str, str]) -> http.client.HTTPResponse:
        mine: dict[Any, http.client.HTTPConnection] = self._of_threads.__dict__
        server = parts.scheme, parts.netloc.rpartition("@")[2]
        if server not in mine:
            mine[server] = self._open(*server)
            self._all.append(mine[server])
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        mine[server].request("GET", path, headers=headers)
        return mine[server].getresponse()

    def close(self) -> None:
        for connection in self._all:
            connection.close()

    def _open(self, scheme: str, host: str) -> http.client.HTTPConnection:
        if scheme == "http":
            return pace.HTTPConnection(host, timeout=self._timeout)
        if scheme != "https":
            raise OSError(f"redirected to {printable(scheme)}://")
        self._secure = self._secure or ssl.create_default_context()
        return pace.HTTPSConnection(host, timeout=self._timeout, context=self._secure)


def _onwards(url: str, location: str) -> str:
    """Raises OSError where a redirection leads to no address."""
    try:
        onwards = urllib.parse.urljoin(url, location)
        urllib.parse.urlsplit(onwards)
    except ValueError as error:
        raise OSError(f"redirected to {printable(location)}: {printable(error)}") from error
    return onwards


def _redirected(response: http.client.HTTPResponse) -> str:
    return response.headers["Location"] or "" if response.status in (301, 302, 303, 307, 308) else ""


def _body(response: http.client.HTTPResponse, start: int, end: int) -> bytes:
    """Raises OSError unless it is just the bytes from `start` to `end`; what else a server sends is not read."""
    found = CONTENT_RANGE.fullmatch(response.headers["Content-Range"] or "")
    if response.status != 206 or not found or (int(found[1]), int(found[2]) + 1) != (start, end):
        raise OSError(f"HTTP {response.status} to a request for a range")
    data = response.read(end - start)
    if len(data) != end - start:
        raise OSError(f"{len(data)} of {end - start} bytes")
    _end(response, 0)
    return data


def _end(response: http.client.HTTPResponse, most: int) -> None:
    """The connection is free for the next request. Raises OSError where more than so many bytes are left."""
    if len(response.read(most + 1)) > most:
        raise OSError(f"HTTP {response.status} with more bytes than were asked for")


def _file_by_file(spans: Sequence[Span]) -> list[Span]:
    """The first of each file, then the second of each, and so on."""
    files: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        files[span[0]].append(span)
    return [span for turn in zip_longest(*files.values()) for span in turn if span]


def _refuse_a_proxy(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or ""):
        raise OSError("ranges are not asked for through a proxy")
