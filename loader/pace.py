"""The least rate of a server over http: one that sends a byte now and then is no better than one that sends nothing.

It holds for all that comes over the connection, headers too, and only the time is counted in which a server is waited for.
"""

import functools
import http.client
import io
import socket
import ssl
import time
import urllib.request
from typing import Any

LEAST = 1 << 16  # bytes that come in WINDOW at the least, or the rest of an answer
WINDOW = 120.0  # seconds


class _Paced(io.RawIOBase):
    """What a socket gives. Raises TimeoutError where it takes longer than WINDOW to the next LEAST bytes."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw, self._come, self._waited = raw, 0, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        begin = time.monotonic()
        count = self._raw.readinto(buffer)
        self._waited += time.monotonic() - begin
        self._come += count or 0
        if self._come >= LEAST:
            self._come, self._waited = 0, 0.0
        elif count and self._waited > WINDOW:
            raise TimeoutError(f"the server sent {self._come} bytes in {self._waited:.0f} s")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Paced(self.fp.detach()))


class HTTPConnection(http.client.HTTPConnection):
    response_class = _Response


class HTTPSConnection(http.client.HTTPSConnection):
    response_class = _Response


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(HTTPConnection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(HTTPSConnection, request, context=_tls())


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all, as each takes tens of milliseconds to make."""
    return ssl.create_default_context()


@functools.cache
def opener() -> urllib.request.OpenerDirector:
    """What opens URLs at this rate, by the environment's proxies, with redirects followed, as `urllib.request.urlopen` does."""
    return urllib.request.build_opener(_HTTPHandler, _HTTPSHandler)
