"""A file server on loopback that misbehaves as told: the k-th request of a path gets the k-th of its faults."""

import socket
import struct
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.raw.server import running

Fault = Callable[["Handler", bytes], None]


def status(code: int, **headers: str) -> Fault:
    def fault(handler: "Handler", body: bytes) -> None:
        handler.send_response(code)
        for name, value in {**headers, "Content-Length": "0"}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return fault


def reset_after(count: int) -> Fault:
    """Some of the body, then a connection reset."""

    def fault(handler: "Handler", body: bytes) -> None:
        handler.start(body)
        handler.wfile.write(body[:count])
        handler.wfile.flush()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()

    return fault


def close_after(count: int) -> Fault:
    """Some of the body, then an orderly end, as a proxy does when its own source fails."""

    def fault(handler: "Handler", body: bytes) -> None:
        handler.start(body)
        handler.wfile.write(body[:count])

    return fault


def stall_after(count: int, seconds: float = 5.0) -> Fault:
    def fault(handler: "Handler", body: bytes) -> None:
        handler.start(body)
        handler.wfile.write(body[:count])
        handler.wfile.flush()
        handler.server.quit.wait(seconds)

    return fault


def wrong_bytes(handler: "Handler", body: bytes) -> None:
    handler.start(body)
    handler.wfile.write(bytes(len(body)))


def ignore_range(handler: "Handler", body: bytes) -> None:
    whole = handler.body() or b""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(whole)))
    handler.end_headers()
    handler.wfile.write(whole)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.quit = threading.Event()
        self.faults: dict[str, list[Fault | None]] = defaultdict(list)
        self.requests: list[tuple[str, str | None, str | None]] = []  # path, range, authorization
        self.redirects: dict[str, str] = {}
        self.texts: dict[str, bytes] = {}
        self.bytes_per_second: float | None = None
        self.sent: Counter[str] = Counter()  # bytes of each path
        self.connections = self.most_connections = 0  # now, and at the same time so far
        self.counting = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the game."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def setup(self) -> None:
        super().setup()
        with self.server.counting:
            self.server.connections += 1
            self.server.most_connections = max(self.server.most_connections, self.server.connections)

    def finish(self) -> None:
        with self.server.counting:
            self.server.connections -= 1
        super().finish()

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Range"], self.headers["Authorization"]))
        faults = self.server.faults[self.path]
        fault = faults.pop(0) if faults else None
        for prefix, target in self.server.redirects.items():
            if self.path.startswith(prefix) and fault is None:
                fault = status(302, Location=target + self.path.removeprefix(prefix))
        whole = self.body() or b""
        first, _, last = (self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(len(whole), int(last or len(whole)) + 1)
        if not whole or start >= len(whole):
            fault = fault or status(416 if whole else 404)
        self.range = f"bytes {start}-{end - 1}/{len(whole)}"
        if fault:
            fault(self, whole[start:end])
        else:
            self.send_slowly(whole[start:end])

    def send_slowly(self, body: bytes) -> None:
        self.start(body)
        rate = self.server.bytes_per_second
        for at in range(0, len(body), 4096):
            self.wfile.write(body[at : at + 4096])
            with self.server.counting:
                self.server.sent[self.path] += len(body[at : at + 4096])
            if rate:
                time.sleep(4096 / rate)

    def body(self) -> bytes | None:
        if self.path in self.server.texts:
            return self.server.texts[self.path]
        path = self.server.root / self.path.split("/")[-1]
        return path.read_bytes() if path.is_file() else None

    def start(self, body: bytes) -> None:
        self.send_response(206 if self.headers["Range"] else 200)
        if self.headers["Range"]:
            self.send_header("Content-Range", self.range)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    with running(Server(root)) as server:
        try:
            yield server
        finally:
            server.quit.set()
