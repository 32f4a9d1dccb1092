"""What a reader meets on its way: outages that pass, archives that are gone, doors that are closed, disks that fail."""

import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

import builders.sa1b
from builders.archives.remote import open_file
from builders.core.errors import ArchiveError, DownloadError, MissingSourceError, RefusedError
from tests.support.raw import sa1b
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.raw.server import serve

UNREADABLE = Path("/proc/self/mem")  # whose first bytes give EIO, as a damaged sector does


@pytest.fixture
def tars(tmp_path: Path) -> Any:
    root = tmp_path / "tars"
    for number in range(3):
        pictures = [
            (f"{i}.{suffix}", data) for i in range(2) for suffix, data in (("jpg", jpeg(i)), ("txt", b"a"))
        ]
        write_tar(root / f"{number}.tar", pictures)
    return root


@pytest.fixture
def server(tars: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # which refuses loopback too
    with serve(tars) as running:
        yield running


@pytest.fixture
def rows(server: Any, tmp_path: Path) -> Any:
    """The rows of the three tars, streamed from the server by links that carry a key. Faults begin once they are listed."""
    links = [f"{server.url}/{number}.tar?key=SECRET" for number in range(3)]
    dataset = datasets.load_dataset(
        "builders/webdataset",
        data_files=links,
        split="train",
        streaming=True,
        keep_rejected=True,
        cache_dir=str(tmp_path / "cache"),
    )
    return lambda: list(dataset.decode(False))


def answer(status: Any, times: Any = 10**9, headers: Any = None, body: Any = b"") -> Any:
    left = iter(range(times))

    def fault(handler: Any, data: Any) -> Any:
        if next(left, None) is None:
            return False
        handler.answer(status, body, headers)
        return True

    return fault


def hang_up(times: Any) -> Any:
    left = iter(range(times))

    def fault(handler: Any, data: Any) -> Any:
        if next(left, None) is None:
            return False
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)
        return True

    return fault


def outcomes(rows: Any) -> Any:
    return [row["reject"] or row["caption"] for row in rows]


@pytest.mark.parametrize("fault", [answer(503, 30), answer(500, 30), answer(429, 30), hang_up(30)])
def test_an_outage_of_minutes_is_waited_out(
    server: Any, rows: Any, waits: list[float], caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    server.faults["1.tar"] = fault
    assert outcomes(rows()) == ["a"] * 6
    assert len(waits) >= 10 and waits == sorted(waits) and waits[0] == 1 and waits[-1] == 60
    told = [message for message in caplog.messages if "Trying again in" in message]
    assert all("min more" in message or "for the last time" in message for message in told)
    assert len(told) == len(waits) and all("/1.tar: " in message for message in told)
    assert "SECRET" not in caplog.text


def test_an_outage_in_the_middle_of_an_archive_is_waited_out(server: Any, waits: list[float]) -> None:
    with open_file(f"{server.url}/0.tar") as file:
        server.faults["0.tar"] = hang_up(9)
        assert file.read() == (server.root / "0.tar").read_bytes()
    assert waits


def without_ranges(body_length: Any, headers: Any, sent: Any = None) -> Any:
    """Answers that are whole files, whatever was asked for. sent: where the bytes that leave are counted."""

    def fault(handler: Any, data: Any) -> Any:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(0, body_length, 2**20):
                handler.wfile.write(bytes(2**20))
                if sent is not None:
                    sent.append(2**20)
        handler.close_connection = True
        return True

    return fault


def test_a_server_that_ignores_ranges_is_not_read_whole(server: Any, waits: list[float]) -> None:
    """The first range of a file of 40 GB is taken, and the second is an error before its body has come."""
    sent: list[Any] = []
    headers = {"Content-Length": str(40 * 2**30)}
    server.faults["0.tar"] = without_ranges(40 * 2**30, headers, sent)
    with open_file(f"{server.url}/0.tar?key=SECRET") as file:
        assert file.read(9) == bytes(9)
        file.seek(30 * 2**30)
        with pytest.raises(
            DownloadError, match=r"/0\.tar: the server cannot be streamed from: it sends whole files"
        ) as told:
            file.read(9)
    assert sum(sent) < 64 * 2**20 and not waits and "SECRET" not in str(told.value)


def test_a_small_file_is_read_from_a_server_that_ignores_ranges(server: Any) -> None:
    server.faults["0.tar"] = lambda handler, data: answer(200, body=data)(handler, data)
    with open_file(f"{server.url}/0.tar") as file:
        assert file.read() == (server.root / "0.tar").read_bytes()


def test_a_server_that_tells_no_length_is_an_error_with_the_cure(server: Any, waits: list[float]) -> None:
    server.faults["0.tar"] = without_ranges(2**20, {})
    with pytest.raises(DownloadError, match=r"/0\.tar: .*does not say how long.*data_dir"):
        open_file(f"{server.url}/0.tar?key=SECRET")
    assert not waits


def test_a_file_that_changes_while_it_is_read_is_an_error(server: Any, waits: list[float]) -> None:
    with open_file(f"{server.url}/0.tar") as file:
        (server.root / "0.tar").write_bytes(bytes(10_240))
        with pytest.raises(DownloadError, match=r"/0\.tar: the file has changed"):
            file.read()
    assert not waits


def test_an_empty_file_is_empty(server: Any) -> None:
    (server.root / "0.tar").write_bytes(b"")
    with open_file(f"{server.url}/0.tar") as file:
        assert file.read() == b""


def test_patience_ends_after_half_an_hour(server: Any, waits: list[float]) -> None:
    server.faults["0.tar"] = answer(503)
    with pytest.raises(
        DownloadError, match=r"/0\.tar: the server answered 503, for half an hour\. Run again"
    ):
        open_file(f"{server.url}/0.tar?key=SECRET")
    assert 1800 <= sum(waits) < 1900


def test_a_server_of_a_byte_now_and_then_is_given_up(
    server: Any, rows: Any, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time; by the clock of the test, two minutes lie between them."""

    def drip(handler: Any, data: Any) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        handler.wfile.write(data[:1])
        return True

    clock = iter(range(0, 10**9, 121))
    monkeypatch.setattr("builders.archives.pace.time.monotonic", lambda: next(clock))
    server.faults["0.tar"] = drip
    told = r"/0\.tar: .*the server sent 1 bytes in 120 s, for half an hour\. Run again"
    with (
        open_file(f"{server.url}/0.tar?key=SECRET") as file,
        pytest.raises(DownloadError, match=told) as error,
    ):
        file.read()
    assert sum(waits) == 1800 and "SECRET" not in str(error.value)
    with pytest.raises(DownloadError, match=told):
        rows()


def test_a_server_that_is_not_there_is_waited_for(server: Any, waits: list[float]) -> None:
    server.server_close()
    server.shutdown()
    with pytest.raises(DownloadError, match=r"Connect.*for half an hour"):
        open_file(f"{server.url}/0.tar")
    assert sum(waits) >= 1800


def test_a_server_may_ask_for_a_longer_pause(server: Any, rows: Any, waits: list[float]) -> None:
    server.faults["1.tar"] = answer(429, 3, {"Retry-After": "90"})
    assert outcomes(rows()) == ["a"] * 6
    assert waits and set(waits) == {90}


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("when", ["before", "between two ranges"])
def test_an_archive_that_is_gone_costs_its_own_rows(
    server: Any, rows: Any, waits: list[float], status: Any, when: Any
) -> None:
    def gone(handler: Any, data: Any) -> Any:
        return (when == "before" or handler.headers["Range"] != "bytes=0-0") and answer(status)(handler, data)

    server.faults["1.tar"] = gone
    found = rows()
    assert outcomes(found) == ["a", "a", "bad_archive", "a", "a"]
    assert found[2]["source"] == "1.tar" and found[2]["error"].startswith("it is gone: ")
    assert not waits and "SECRET" not in str(found)


@pytest.mark.parametrize("status", [401, 403])
def test_a_closed_door_stops_at_once(server: Any, rows: Any, waits: list[float], status: Any) -> None:
    server.faults["1.tar"] = answer(status)
    with pytest.raises(
        RefusedError, match=rf"/1\.tar: the server answered {status}: .* is not public"
    ) as told:
        rows()
    assert not waits and "SECRET" not in str(told.value)


def test_expired_links_of_meta_are_told_with_the_cure(
    server: Any, build: Any, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sa1b.make(server.root)
    captions = dataclasses.replace(builders.sa1b.CAPTIONS, url=f"{server.url}/SA1B_caption.tar.gz")
    monkeypatch.setattr(builders.sa1b, "CAPTIONS", captions)
    links = tmp_path / "links.txt"
    links.write_text(f"sa_000020.tar\t{server.url}/sa_000020.tar?oh=SECRET\n")
    assert build("sa1b", links=str(links), streaming=True)
    server.faults["sa_000020.tar"] = answer(403)
    with pytest.raises(
        RefusedError, match=r"sa_000020\.tar: the server answered 403.*ai\.meta\.com.*links=PATH"
    ) as told:
        build("sa1b", links=str(links), streaming=True)
    assert "SECRET" not in str(told.value)


def test_annotations_that_are_gone_stop_at_once(
    server: Any, build: Any, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every archive would lack them."""
    sa1b.make(server.root)
    captions = dataclasses.replace(builders.sa1b.CAPTIONS, url=f"{server.url}/gone.tar.gz")
    monkeypatch.setattr(builders.sa1b, "CAPTIONS", captions)
    links = tmp_path / "links.txt"
    links.write_text(f"sa_000020.tar\t{server.url}/sa_000020.tar\n")
    with pytest.raises(MissingSourceError, match=r"gone\.tar\.gz: it is gone"):
        build("sa1b", links=str(links), streaming=True)
    assert not waits


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that cannot be read")
def test_an_archive_that_the_disk_cannot_read_costs_its_own_rows(tars: Any, build: Any) -> None:
    (tars / "1.tar").unlink()
    (tars / "1.tar").symlink_to(UNREADABLE)
    found = build("webdataset", data_dir=str(tars), streaming=True, keep_rejected=True)
    assert outcomes(found) == ["a", "a", "bad_archive", "a", "a"]
    assert "Input/output error" in found[2]["error"]
    for length in (-1, 512):
        with open_file(str(tars / "1.tar")) as file:
            with pytest.raises(ArchiveError, match="the disk cannot read it"):
                file.read(length)


def test_an_archive_that_vanished_from_the_disk_stops_at_once(tars: Any, build: Any) -> None:
    """More likely the whole disk is gone than one file of it."""
    dataset = datasets.load_dataset("builders/webdataset", data_dir=str(tars), split="train", streaming=True)
    (tars / "1.tar").unlink()
    with pytest.raises(FileNotFoundError):
        list(dataset)
