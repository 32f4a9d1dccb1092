"""Servers that misbehave in every way at hand, by a seed: the same batches, or an error that names the place; few bytes, few requests.

LATENTMILL_FUZZ=2000 tries so many servers instead of 40.
"""

import gzip
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import loader.remote
import loader.transport
from loader import DataError, FormatError
from tests.support.batches import epoch_of
from tests.support.faulty_server import (
    Fault,
    Handler,
    Server,
    close_after,
    ignore_range,
    reset_after,
    serve,
    status,
    wrong_bytes,
)
from tests.support.keyed_shards import FIELDS, write_shards
from tests.support.waiting import Clock

SERVERS = int(os.environ.get("LATENTMILL_FUZZ", "40"))
IMAGE = [field for field in FIELDS if field.name == "moments_256"]
MOST_BYTES = 16 << 20  # of one endless answer, what lies in the buffers of both ends included
MOST_REQUESTS = 1000

ODD_LENGTHS = ["-1", "abc", "1e3", "9" * 30, "", "0x10", "1, 1"]
ODD_WAITS = ["1000000000", "inf", "nan", "-5", "soon", "", "Fri, 31 Dec 9999 23:59:59 GMT"]
sent = Counter[str]()


def raw(answer: bytes) -> Fault:
    """An answer, byte for byte; then the connection ends."""

    def fault(handler: Handler, body: bytes) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    return fault


def headed(change: Callable[[Handler, bytes], tuple[int, dict[str, str], bytes]]) -> Fault:
    """An answer of the status, headers and body that are given for a request."""

    def fault(handler: Handler, body: bytes) -> None:
        code, headers, answer = change(handler, body)
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(answer)
        handler.close_connection = True

    return fault


def endless(piece: bytes) -> Fault:
    """Headers, or a body, that go on until the client hangs up (of the test: four times what is too much)."""

    def fault(handler: Handler, body: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"" if b":" in piece else b"\r\n" + body))
        block = piece * max(1, (1 << 16) // len(piece))
        for number in range(4 * MOST_BYTES // len(block)):
            handler.wfile.write(block)
            sent["endless"] = max(sent["endless"], number * len(block))

    return fault


def slow(clock: Clock) -> Fault:
    """A byte now and then: by the clock of the test, a minute lies between two."""

    def fault(handler: Handler, body: bytes) -> None:
        handler.start(body)
        for at in range(len(body)):
            clock.advance(60)
            handler.wfile.write(body[at : at + 1])
            if handler.server.quit.wait(0.001):
                return

    return fault


def chunked(body: bytes, sizes: str) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + f"{sizes}\r\n".encode() + body[:100] + b"\r\n"


def any_fault(rng: random.Random, clock: Clock, elsewhere: str) -> Fault:
    """elsewhere: a sound server of another host."""
    size = rng.randrange(60_000)
    lies: list[Callable[[], Fault]] = [
        lambda: endless(bytes(1024)),
        lambda: endless(b"x" * 1024),
        lambda: endless(b"X-Header: x\r\n"),
        lambda: endless(b"X-Header: " + b"x" * 4096),
        lambda: slow(clock),
        lambda: close_after(size),
        lambda: reset_after(size),
        lambda: wrong_bytes,
        lambda: ignore_range,
        lambda: status(rng.choice([204, 206, 300, 304, 400, 401, 403, 404, 410, 416, 418, 451, 501, 999])),
        lambda: status(rng.choice([408, 425, 429, 500, 502, 503, 504]), Retry_After=rng.choice(ODD_WAITS)),
        lambda: headed(lambda h, body: (302, {"Location": rng.choice([f"file:///etc{h.path}", h.path, "ftp://x", "//", "", "http://[", elsewhere + h.path, "\\\\x"])}, b"")),
        lambda: headed(lambda h, body: (206 if h.headers["Range"] else 200, {"Content-Length": rng.choice(ODD_LENGTHS), "Content-Range": h.range}, body)),
        lambda: headed(lambda h, body: (200, {"Content-Length": str(len(body) + size + 1)}, body)),
        lambda: headed(lambda h, body: (200, {"Content-Length": str(len(body) // 2)}, body)),
        lambda: headed(lambda h, body: (206, {"Content-Range": rng.choice(["bytes 0-0/1", "bytes 5-2/9", "bytes */9", "x", f"bytes {'9' * 40}-1/2"]), "Content-Length": str(len(body))}, body)),
        lambda: headed(lambda h, body: (206, {"Content-Range": h.range, "Content-Length": str(len(body))}, body[7:] + body[:7])),
        lambda: headed(lambda h, body: (200, {"Content-Encoding": "gzip"}, gzip.compress(body))),
        lambda: raw(chunked(bytes(100), rng.choice(["zz", "-5", "ffffffffffffffffffff", "40", "", "1;" + "x" * 70_000]))),
        lambda: raw(rng.choice([b"", b"\r\n\r\n", b"HTTP/9.9 200\r\n\r\n", b"ICY 200 OK\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", rng.randbytes(300), b"HTTP/1.1 200 OK\r\n \r\n\r\n"])),
    ]  # fmt: skip
    return rng.choice(lies)()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("servers") / "a", [10, 10], fields=IMAGE)


@pytest.fixture
def servers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, str]]:
    monkeypatch.setattr(loader.transport, "TIMEOUT", 5.0)
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.02)
    monkeypatch.setattr(loader.remote, "LARGEST_SIDECAR", 1 << 20)
    monkeypatch.setattr(loader.remote.RemoteFolder.read, "__defaults__", (1 << 20,))
    with serve(folder) as server, serve(folder) as other:
        yield server, other.url.replace("127.0.0.1", "localhost")


def epoch(path: str | Path) -> list[dict[str, Any]]:
    return epoch_of(path, 5, extras=["key"], seed=1, patience=0.2, on_error="raise")


def test_a_server_of_any_kind(
    servers: tuple[Server, str],
    folder: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, elsewhere = servers
    caplog.set_level(logging.ERROR)
    expected, outcomes = epoch(folder), Counter[str]()
    for seed in range(SERVERS):
        rng = random.Random(seed)
        monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / str(seed)))
        server.faults.clear()
        server.requests.clear()
        sent.clear()
        for file in rng.sample(
            ["manifest.json", "train-00000.tar", "train-00000.parquet"], rng.choice([1, 1, 2])
        ):
            faults = [any_fault(rng, clock, elsewhere) for _ in range(rng.choice([1, 1, 3]))]
            server.faults[f"/{file}"] = list(faults) * rng.choice([1, 1, 1000])
        try:
            found = epoch(server.url)
        except (OSError, FormatError, DataError, ValueError) as error:
            outcomes["refused"] += 1
            assert server.url in str(error) and str(error).isprintable(), f"seed {seed}: {error!r}"
        else:
            outcomes["the same"] += 1
            assert found == expected, f"seed {seed}"
        assert sent["endless"] < MOST_BYTES, f"seed {seed}"
        assert len(server.requests) < MOST_REQUESTS, f"seed {seed}"
    assert min(outcomes["refused"], outcomes["the same"]) > SERVERS // 6, outcomes
