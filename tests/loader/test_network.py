"""Servers that lie, never end or are not there, and addresses that hold secrets: bounded bytes, bounded time, nothing told."""

import gzip
import json
import logging
import shutil
import socket
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

import loader.remote
import loader.transport
from loader import DataError, FormatError, as_webdataset, make_loader
from loader.printable import printable
from tests.support.faulty_server import (
    Fault,
    Handler,
    Server,
    close_after,
    ignore_range,
    reset_after,
    serve,
    status,
)
from tests.support.keyed_shards import FIELDS, write_shards
from tests.support.waiting import Clock

OPTIONS: dict[str, Any] = {"extras": ["key"], "seed": 1, "shuffle_window": 20}
IMAGE = [field for field in FIELDS if field.name == "moments_256"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("network") / "a", [10, 10], fields=IMAGE)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(loader.transport, "TIMEOUT", 0.5)
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.05)
    with serve(folder) as running:
        yield running


def keys(path: Any, **options: Any) -> list[str]:
    batches = make_loader(path, 5, **{**OPTIONS, **options})
    try:
        return [key for batch in batches for key in batch["key"]]
    finally:
        batches.close()


SENT: list[int] = []


def endless(handler: Handler, body: bytes) -> None:
    """What was asked for, and then more without end (of the test: 64 MiB)."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(body)
    for _ in range(1024):
        handler.wfile.write(bytes(1 << 16))
        SENT.append(1 << 16)


def test_a_tar_without_an_end_is_read_to_its_own(server: Server, folder: Path, cache: Path) -> None:
    SENT.clear()
    server.faults["/train-00000.tar"] = [endless] * 3
    assert keys(server.url) == keys(folder)
    largest = max(path.stat().st_size for path in folder.glob("*.tar"))
    assert max(path.stat().st_size for path in (cache / "files").iterdir()) <= largest
    assert sum(SENT) < 32 << 20


@pytest.mark.parametrize(
    "faults",
    [[], [endless], [reset_after(5000), close_after(3000)], [reset_after(20_000), ignore_range]],
)
def test_webdataset_reads_a_tar_to_its_end_and_no_further(
    server: Server, folder: Path, faults: list[Fault]
) -> None:
    SENT.clear()
    server.faults["/train-00000.tar"] = list(faults)
    found, expected = (list(as_webdataset(place)) for place in (server.url, folder))
    assert [sample["__key__"] for sample in found] == [sample["__key__"] for sample in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one["moments_256.npy"], other["moments_256.npy"])
    assert sum(SENT) < 32 << 20 and server.faults["/train-00000.tar"] == []


def test_webdataset_unpacks_no_tar(server: Server, folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    packed = gzip.compress((folder / "train-00000.tar").read_bytes())
    server.texts["/train-00000.tar"] = packed
    (copy / "train-00000.tar").write_bytes(packed)
    for place in (server.url, copy):
        with pytest.raises(ValueError, match="a compressed tar"):
            list(as_webdataset(place))
        found = list(as_webdataset(place, handler=webdataset.ignore_and_continue))
        assert len(found) == 10, "of the other shard"


def test_a_sidecar_without_an_end_costs_substitutes(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader.remote, "LARGEST_SIDECAR", 1 << 20)
    SENT.clear()
    server.faults["/train-00000.parquet"] = [endless] * 100
    batches = make_loader(server.url, 5, **OPTIONS)
    assert len(list(batches)) == 4 and batches.stats()["substitutes"] == 10
    batches.close()
    assert "train-00000.parquet is larger than 1048576 bytes" in caplog.text
    assert all(path.stat().st_size <= 1 << 20 for path in (cache / "files").iterdir())


def test_a_manifest_without_an_end_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 20
    monkeypatch.setattr(loader.remote.RemoteFolder.read, "__defaults__", (limit,))
    server.faults["/manifest.json"] = [endless]
    with pytest.raises(FormatError, match=r"manifest\.json: it is larger than 1048576 bytes"):
        make_loader(server.url, 5)


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b'{"sha": 7}', b'{"sha": "../../x"}', b"[" * 100_000, b"\xff"]
)
def test_an_odd_answer_of_the_hub_is_a_format_error(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    server.texts["/api/datasets/me/x/revision/main"] = answer
    with pytest.raises(FormatError, match="hf://datasets/me/x: "):
        make_loader("hf://datasets/me/x", 5)


@pytest.mark.parametrize(
    "asked", ["1000000000", "inf", "nan", "-5", "1e308", "-inf", "9" * 400, "soon", formatdate(9e9), ""]
)
def test_a_retry_after_is_bounded_by_the_patience(server: Server, asked: str) -> None:
    server.faults["/train-00000.tar"] = [status(503, Retry_After=asked)] * 1000
    begin = time.monotonic()
    with pytest.raises(DataError, match="nothing arrived for"):
        keys(server.url, patience=0.4, on_error="raise")
    assert time.monotonic() - begin < 60


def odd_length(text: str) -> Fault:
    def fault(handler: Handler, body: bytes) -> None:
        handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {text}\r\n\r\n".encode() + body)
        handler.close_connection = True

    return fault


@pytest.mark.parametrize("text", ["abc", "-1", "1e3", "9" * 30, "٣"])
@pytest.mark.parametrize("file", ["manifest.json", "train-00000.tar", "train-00000.parquet"])
def test_a_nonsense_content_length_is_one_more_failure(
    server: Server, folder: Path, file: str, text: str
) -> None:
    server.faults[f"/{file}"] = [odd_length(text)]
    assert keys(server.url) == keys(folder)


def drip(clock: Clock, headers: bool) -> Fault:
    """The body, or the headers, a byte at a time; by the clock of the test, 29 seconds lie between them."""

    def fault(handler: Handler, body: bytes) -> None:
        if not headers:
            handler.start(body)
        for at in range(len(body)):
            clock.advance(29)
            handler.wfile.write(
                b"HTTP/1.1 200 OK\r\nX: x"[at : at + 1] or b"x" if headers else body[at : at + 1]
            )
            if handler.server.quit.wait(0.001):
                return

    return fault


@pytest.mark.parametrize("headers", [False, True])
def test_a_server_of_a_byte_now_and_then_holds_no_training(
    server: Server, folder: Path, clock: Clock, headers: bool
) -> None:
    slow = drip(clock, headers)
    server.faults["/train-00000.tar"] = [slow] * 1000
    with pytest.raises(DataError, match=r"/train-00000\.tar: the server sent \d+ bytes in \d+ s; .* arrived"):
        keys(server.url, on_error="raise")
    server.faults["/manifest.json"] = [slow] * 1000
    with pytest.raises(TimeoutError, match=rf"^{server.url}/manifest\.json: the server sent \d+ bytes"):
        make_loader(server.url, 5)
    for file in ("manifest.json", "train-00000.parquet", "train-00000.tar"):
        server.faults[f"/{file}"] = [slow]
    assert keys(server.url) == keys(folder), "once, it is one more failure that passes"


def test_a_name_that_nobody_knows_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"no server of the name shards\.invalid is known.*check the spelling"):
        make_loader("http://shards.invalid/x", 5)
    assert time.monotonic() - begin < 25, "and not after the patience for a missing network"


def test_a_name_that_is_unknown_for_a_while_is_waited_for(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, real, left = keys(folder), socket.getaddrinfo, [3]
    batches = make_loader(server.url, 5, **OPTIONS)

    def sometimes(*args: Any, **more: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(*args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", sometimes)
    assert [key for batch in batches for key in batch["key"]] == expected and not left[0]
    batches.close()


def test_offline_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="hf://datasets/me/x: HF_HUB_OFFLINE is set; unset it"):
        make_loader("hf://datasets/me/x", 5)


@pytest.mark.parametrize(
    ("address", "path", "query"),
    [
        ("{}/my data", "/my%20data", ""),
        ("{}/my%20data", "/my%20data", ""),
        ("{}/a?X-Amz-Signature=s3cr3t&x=a%2Fb", "/a", "?X-Amz-Signature=s3cr3t&x=a%2Fb"),
        ("{}/a/?sig=s3cr3t+", "/a", "?sig=s3cr3t+"),
        ("{}/größe's", "/gr%C3%B6%C3%9Fe%27s", ""),
    ],
)
def test_addresses_with_spaces_and_queries(
    folder: Path, server: Server, caplog: pytest.LogCaptureFixture, address: str, path: str, query: str
) -> None:
    for file in folder.iterdir():
        if file.is_file():
            server.texts[f"{path}/{file.name}{query}"] = file.read_bytes()
    server.faults[f"{path}/train-00000.tar{query}"] = [status(503)]
    batches = make_loader(address.format(server.url), 5, **OPTIONS)
    assert [key for batch in batches for key in batch["key"]] == keys(folder)
    assert "trying again" in caplog.text and "s3cr3t" not in caplog.text + str(batches.stats())
    batches.close()
    server.faults[f"{path}/manifest.json{query}"] = [status(404)]
    with pytest.raises(ValueError) as error:
        make_loader(address.format(server.url), 5)
    assert "s3cr3t" not in str(error.value)


def test_a_login_in_an_address_goes_to_the_server_alone(
    folder: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serve(folder) as other:
        server.redirects["/train-00000.tar"] = (
            other.url.replace("127.0.0.1", "localhost") + "/train-00000.tar"
        )
        server.faults["/train-00001.tar"] = [status(404)] * 100
        url = server.url.replace("://", "://user:hun%40ter2@")
        assert len(keys(url)) == 20
        assert {header for _, _, header in server.requests} == {"Basic dXNlcjpodW5AdGVyMg=="}
        assert {header for _, _, header in other.requests} == {None}
    assert "HTTP 404" in caplog.text and "hun" not in caplog.text and "user" not in caplog.text


def test_what_a_server_says_reaches_no_terminal(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def reason(handler: Handler, body: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 418 \x1b]0;pwned\x07\x1b[31mRED\r\nContent-Length: 0\r\n\r\n")
        handler.close_connection = True

    server.faults["/train-00000.tar"] = [reason] * 100
    assert len(keys(server.url)) == 20
    assert "HTTP 418" in caplog.text and "\x1b" not in caplog.text and "\x07" not in caplog.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pw@host/a?X-Amz-Signature=abc&b", "https://host/a?..."),
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("a\x1b[31m\r\nb\u202e", "a\\x1b[31m\\r\\nb\\u202e"),
        ("'https://h/x?sig=1' and 'https://h/y?sig=2'", "'https://h/x?...' and 'https://h/y?...'"),
        ("Bearer abcdefghijkl hf_abcdefghijkl", "*** ***"),
        ("größe 日本 a@b", "größe 日本 a@b"),
        ("\udc80", "\\udc80"),
        ("x" * 5000, "x" * 2000 + "..."),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_redirect_to_a_file_of_this_machine_is_refused(server: Server, folder: Path) -> None:
    server.faults["/manifest.json"] = [status(302, Location=f"file://{folder}/manifest.json")] * 100
    with pytest.raises(OSError, match="HTTP 302"):
        make_loader(server.url, 5, patience=0.2)


@pytest.mark.parametrize("file", ["manifest.json", "train-00000.parquet", "train-00000.tar"])
def test_a_redirect_to_no_address_names_the_place(server: Server, file: str) -> None:
    server.faults[f"/{file}"] = [status(302, Location="http://[")] * 1000
    with pytest.raises((OSError, DataError), match=rf"^{server.url}.*{file}: Invalid IPv6 URL"):
        keys(server.url, patience=0.2, on_error="raise")


def test_a_mutated_answer_never_ends_in_a_bare_error(server: Server, folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for odd in (None, [], 7, {"train": 3}, {"train\x1b[2J": manifest["splits"]["train"]}):
        server.texts["/manifest.json"] = json.dumps({**manifest, "splits": odd}).encode()
        with pytest.raises(FormatError) as error:
            make_loader(server.url, 5)
        assert str(error.value).isprintable()
