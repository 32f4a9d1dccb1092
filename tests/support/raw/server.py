"""A loopback file server that serves byte ranges, and misbehaves on request."""

import contextlib
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

AnyServer = TypeVar("AnyServer", bound=ThreadingHTTPServer)
Fault = Callable[["Handler", bytes], bool]  # True: it has answered


def etag(data: bytes) -> str:
    return f'"{zlib.crc32(data):08x}"'


class Handler(BaseHTTPRequestHandler):
    server: "Server"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    version: dict[str, str] = {}  # noqa: RUF012  set anew for each request

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.lstrip("/").split("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        self.server.hits[path] += 1
        self.version = {}
        file = self.server.root / path
        if not file.is_file():
            return self.answer(404, b"no such file")
        data = file.read_bytes()
        self.version = {"ETag": etag(data)}
        fault = self.server.faults.get(path)
        if fault is not None and fault(self, data):
            return None
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None or self.headers.get("If-Range", etag(data)) != etag(data):
            return self.answer(200, data)
        start, end = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
        if start >= len(data):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return self.answer(206, data[start : end + 1], {"Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **self.version} | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """`faults[path]` is asked before a file is served; `hits` counts requests by path."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.faults: dict[str, Fault] = {}
        self.hits: Counter[str] = Counter()
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Server]:
    with running(Server(root)) as server:
        yield server


@contextlib.contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """The server answers, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
