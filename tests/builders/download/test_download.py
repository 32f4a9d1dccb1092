"""The download command against a loopback server that cuts, lies, refuses and slows down."""

import contextlib
import dataclasses
import email.utils
import errno
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import builders.textcaps
from builders.archives.backoff import PATIENCE, Patience
from builders.archives.sources import Source, hub_url
from builders.core.errors import DownloadError
from builders.download import __main__ as download
from builders.download import fetch
from tests.support.raw import textcaps
from tests.support.raw.server import etag, serve

DATA = b"PK" + bytes(range(256)) * 8000  # 2 MB


class Bar:
    total = 0

    def update(self, count: Any) -> None:
        self.total += count


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    root = tmp_path / "served"
    root.mkdir()
    (root / "a.zip").write_bytes(DATA)
    with serve(root) as running:
        yield running


@pytest.fixture
def downloader(tmp_path: Path) -> Any:
    return fetch.Downloader("coco", str(tmp_path / "out"), Bar())


def source(server: Any, path: Any = "a.zip", **known: Any) -> Any:
    return Source(path, f"{server.url}/{path}", **known)


def cut_after(fraction: Any, times: Any = 1) -> Any:
    """Answers that promise all bytes and break off, the first `times` times."""
    left = [times]

    def fault(handler: Any, data: Any) -> Any:
        if not left[0]:
            return False
        left[0] -= 1
        start = int((handler.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        rest = data[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(rest)))
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        handler.wfile.write(rest[: int(len(rest) * fraction)])
        handler.close_connection = True
        return True

    return fault


def answer(status: Any, body: Any = b"", headers: Any = None, times: Any = 10**9) -> Any:
    left = [times]

    def fault(handler: Any, data: Any) -> Any:
        if not left[0]:
            return False
        left[0] -= 1
        handler.answer(status, body, headers)
        return True

    return fault


def test_a_file_arrives_whole_and_is_not_fetched_twice(server: Any, downloader: Any, tmp_path: Path) -> None:
    assert downloader.fetch(source(server)) is True
    assert (tmp_path / "out/a.zip").read_bytes() == DATA and downloader.bar.total == len(DATA)
    assert downloader.fetch(source(server)) is False
    assert server.hits["a.zip"] == 1 and [path.name for path in (tmp_path / "out").iterdir()] == ["a.zip"]


def test_a_broken_connection_goes_on_at_the_byte(
    server: Any, downloader: Any, tmp_path: Path, waits: list[float]
) -> None:
    server.faults["a.zip"] = cut_after(0.5, times=3)
    downloader.fetch(source(server, sha256=hashlib.sha256(DATA).hexdigest()))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA
    starts = [int(wanted[6:-1]) if wanted else 0 for _, _, wanted in server.requests]
    assert starts == sorted(set(starts)) and len(starts) == 4 and downloader.bar.total == len(DATA)


def test_a_killed_download_goes_on_in_the_next_run(server: Any, downloader: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.zip.part").write_bytes(DATA[:1_000_001])
    (tmp_path / "out/a.zip.part.of").write_text(etag(DATA))
    downloader.fetch(source(server))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA
    assert (
        server.requests == [("GET", "a.zip", "bytes=1000001-")]
        and downloader.bar.total == len(DATA) - 1_000_001
    )


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_yesterdays_half_is_never_joined_to_todays(
    server: Any, downloader: Any, tmp_path: Path, waits: list[float], knows_if_range: Any
) -> None:
    today = bytes(reversed(DATA))
    server.faults["a.zip"] = whole = answer(200, DATA, {"ETag": etag(DATA)}, times=0)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.zip.part").write_bytes(DATA[:1_000_000])
    (tmp_path / "out/a.zip.part.of").write_text(etag(DATA))
    (server.root / "a.zip").write_bytes(today)

    def ignores_if_range(handler: Any, data: Any) -> Any:
        del handler.headers["If-Range"]
        return whole(handler, data)

    if not knows_if_range:
        server.faults["a.zip"] = ignores_if_range
    downloader.fetch(source(server))
    assert (tmp_path / "out/a.zip").read_bytes() == today
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.zip"]


def test_a_half_of_nobody_knows_what_is_fetched_again(server: Any, downloader: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.zip.part").write_bytes(b"z" * 1000)
    downloader.fetch(source(server))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA and server.requests[0][2] is None


def test_a_run_that_ended_in_the_middle_goes_on_in_the_next(
    server: Any, downloader: Any, tmp_path: Path
) -> None:
    def cut_with_version(handler: Any, data: Any) -> Any:
        handler.send_response(200)
        for name, value in {"Content-Length": str(len(data)), "ETag": etag(data)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data[:1_000_000])
        handler.close_connection = True
        return True

    server.faults["a.zip"] = cut_with_version
    downloader.stopping.set()
    with pytest.raises(DownloadError, match="Run again"):
        downloader.fetch(source(server))
    downloader.stopping.clear()
    del server.faults["a.zip"]
    had = (tmp_path / "out/a.zip.part").stat().st_size
    downloader.fetch(source(server))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA and had
    assert server.requests[-1] == ("GET", "a.zip", f"bytes={had}-")


def without_length(handler: Any, body: Any, endless: Any = False) -> Any:
    """Answer like a server of HTTP 1.0: the end of the connection is the end of the file."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(body)
        while endless:
            handler.wfile.write(b"\1" * 2**20)
    handler.close_connection = True
    return True


def test_a_server_without_length_that_breaks_off_is_noticed_by_the_published_size(
    server: Any, downloader: Any, tmp_path: Path, waits: list[float]
) -> None:
    left = [2]

    def breaks_off(handler: Any, data: Any) -> Any:
        left[0] -= 1
        return left[0] >= 0 and without_length(handler, data[:1000])

    server.faults["a.zip"] = breaks_off
    downloader.fetch(source(server, size=len(DATA)))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA and len(waits) == 2


def test_a_body_without_end_is_cut_at_the_published_size(
    server: Any, downloader: Any, tmp_path: Path
) -> None:
    server.faults["a.zip"] = lambda handler, data: without_length(handler, b"", endless=True)
    with pytest.raises(DownloadError, match="more than the 1,000 bytes"):
        downloader.fetch(source(server, size=1000))
    assert not list((tmp_path / "out").iterdir())


def test_a_server_of_a_byte_now_and_then_is_given_up(
    server: Any, downloader: Any, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time; by the clock of the test, two minutes lie between them."""
    clock = iter(range(0, 10**9, 121))
    monkeypatch.setattr("builders.archives.pace.time.monotonic", lambda: next(clock))
    server.faults["a.zip"] = cut_after(1e-6, times=10**9)
    with pytest.raises(DownloadError, match=r"2 bytes in 120 s, for half an hour"):
        downloader.fetch(source(server))
    assert sum(waits) == PATIENCE


@pytest.mark.parametrize("size", ["9" * 5000, "abc", "-5", ""])
def test_a_nonsense_length_is_no_length(
    server: Any, downloader: Any, tmp_path: Path, waits: list[float], size: Any
) -> None:
    def nonsense(handler: Any, data: Any) -> Any:
        if len(server.requests) > 1:
            return False
        handler.answer(206, data, {"Content-Range": f"bytes 0-1/{size}"})
        return True

    server.faults["a.zip"] = nonsense
    downloader.fetch(source(server, size=len(DATA)))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA


@pytest.mark.parametrize(
    "asked", ["1000000000", "9" * 400, "inf", "nan", "-1", "1e9", "Fri, 31 Dec 9999 23:59:59 GMT", "²"]
)
def test_a_server_does_not_say_how_long_we_live(waits: list[float], asked: Any) -> None:
    patience = Patience()
    while patience.wait("a.zip: the server answered 503", asked):
        pass
    assert sum(waits) <= PATIENCE and max(waits) <= 600 and min(waits) > 0


def test_a_server_without_ranges_starts_over(server: Any, downloader: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.zip.part").write_bytes(b"z" * 99)
    server.faults["a.zip"] = answer(200, DATA)
    downloader.fetch(source(server))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA


def test_more_on_disk_than_there_is_starts_over(
    server: Any, downloader: Any, tmp_path: Path, waits: list[float]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.zip.part").write_bytes(DATA + b"too much")
    (tmp_path / "out/a.zip.part.of").write_text(etag(DATA))
    downloader.fetch(source(server))
    assert (tmp_path / "out/a.zip").read_bytes() == DATA


def test_a_target_of_the_wrong_size_is_fetched_again(server: Any, downloader: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.zip").write_bytes(b"half a file by another tool")
    assert downloader.fetch(source(server, size=len(DATA))) is True
    assert (tmp_path / "out/a.zip").read_bytes() == DATA


@pytest.mark.parametrize("status", [429, 503, 500])
def test_retry_after_is_honoured(server: Any, downloader: Any, waits: list[float], status: Any) -> None:
    server.faults["a.zip"] = answer(status, headers={"Retry-After": "17"}, times=2)
    downloader.fetch(source(server))
    assert waits == [17.0, 17.0]


def test_retry_after_as_a_date_and_none(server: Any, downloader: Any, waits: list[float]) -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    server.faults["a.zip"] = answer(503, headers={"Retry-After": date}, times=1)
    downloader.fetch(source(server))
    assert 25 < waits[0] <= 30
    server.faults["a.zip"] = answer(503, times=4)
    del waits[:]
    downloader.fetch(Source("b.zip", f"{server.url}/a.zip"))
    assert waits == sorted(waits) and waits[-1] == 8  # backs off


def test_it_gives_up_in_the_end_and_keeps_what_it_has(
    server: Any, downloader: Any, tmp_path: Path, waits: list[float]
) -> None:
    left = [1]

    def cut_then_503(handler: Any, data: Any) -> Any:
        if left[0]:
            left[0] = 0
            return cut_after(0.5)(handler, data)
        return answer(503)(handler, data)

    server.faults["a.zip"] = cut_then_503
    with pytest.raises(DownloadError, match=r"a\.zip: the server answered 503, for half an hour.*Run again"):
        downloader.fetch(source(server))
    assert 0 < (tmp_path / "out/a.zip.part").stat().st_size < len(DATA)


def test_a_server_that_lies_about_the_size(
    server: Any, downloader: Any, tmp_path: Path, waits: list[float]
) -> None:
    def short(handler: Any, data: Any) -> Any:
        handler.answer(200, data[:1000])  # a whole answer, but not of this file
        return True

    server.faults["a.zip"] = short
    with pytest.raises(DownloadError, match=r"published with 2,048,002 bytes, the server has 1,000"):
        downloader.fetch(source(server, size=len(DATA)))
    assert not (tmp_path / "out/a.zip").exists()


def test_a_wrong_checksum_is_not_kept(server: Any, downloader: Any, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"sha256 is .*published is 000"):
        downloader.fetch(source(server, sha256="0" * 64))
    assert not list((tmp_path / "out").iterdir())


def test_the_hubs_checksum_is_checked(server: Any, downloader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *args, **kwargs: f"{server.url}/a.zip")
    hub = Source("a.zip", hub_url("USER/SET", "a.zip"))
    server.faults["a.zip"] = answer(200, DATA, {"X-Linked-Etag": '"' + "1" * 64 + '"'})
    with pytest.raises(DownloadError, match="sha256"):
        downloader.fetch(hub)
    server.faults["a.zip"] = answer(200, DATA, {"X-Linked-Etag": f'"{hashlib.sha256(DATA).hexdigest()}"'})
    assert downloader.fetch(hub) is True


@pytest.mark.parametrize(
    "fault", [answer(403, b"URL signature expired"), answer(200, b"<!DOCTYPE html><html>log in</html>")]
)
def test_expired_links_of_meta(server: Any, tmp_path: Path, fault: Any) -> None:
    server.faults["sa_000020.tar"] = fault
    (server.root / "sa_000020.tar").write_bytes(b"x")
    downloader = fetch.Downloader("sa1b", str(tmp_path / "out"), Bar())
    link = Source("sa_000020.tar", f"{server.url}/sa_000020.tar?oh=SECRET&oe=67A68F58")
    downloader.fetch_all([link, *[Source(f"sa_{n:06d}.tar", link.url) for n in range(21, 40)]], num_threads=1)
    message = downloader.failed["sa_000020.tar"]
    assert (
        "expired" in message and "ai.meta.com" in message and "--links" in message and "SECRET" not in message
    )
    assert len(server.requests) == 1 and len(downloader.failed) == 20, "the others would fail in the same way"


@pytest.mark.parametrize("status", [401, 403])
def test_gated_without_token_or_terms(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Any
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *args, **kwargs: f"{server.url}/a.zip")
    server.faults["a.zip"] = answer(status)
    downloader = fetch.Downloader("journeydb", str(tmp_path), Bar())
    downloader.fetch_all([Source("a.zip", hub_url("JourneyDB/JourneyDB", "data/a.zip"))], 1)
    message = downloader.failed["a.zip"]
    assert "https://huggingface.co/datasets/JourneyDB/JourneyDB" in message and "hf auth login" in message


def test_not_found_fails_one_file_and_no_other(server: Any, downloader: Any) -> None:
    downloader.fetch_all([source(server, "gone.zip"), source(server)], num_threads=2)
    assert downloader.done == ["a.zip"] and "not there (404)" in downloader.failed["gone.zip"]


def test_a_full_disk_stops_at_once_and_keeps_what_it_has(
    server: Any, downloader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    downloader.fetch_all([source(server), *[source(server, f"{n}.zip") for n in range(5)]], num_threads=1)
    assert "is full" in downloader.failed["a.zip"] and "--parts" in downloader.failed["a.zip"]
    assert server.hits.total() == 1 and (tmp_path / "out/a.zip.part").exists()


def test_files_are_fetched_at_the_same_time(server: Any, downloader: Any) -> None:
    together = threading.Barrier(4)

    def slow(handler: Any, data: Any) -> Any:
        together.wait(200)  # for the other three
        return False

    for number in range(4):
        (server.root / f"{number}.zip").write_bytes(DATA)
        server.faults[f"{number}.zip"] = slow
    downloader.fetch_all([source(server, f"{number}.zip") for number in range(4)], num_threads=4)
    assert len(downloader.done) == 4 and not together.broken


def test_the_command_fetches_what_the_builder_reads(
    server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    build: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    textcaps.make(server.root)
    for constant in ("_IMAGES", "_TRAIN", "_VAL"):
        published = getattr(builders.textcaps, constant)
        here = dataclasses.replace(published, url=f"{server.url}/{published.path}")
        monkeypatch.setattr(builders.textcaps, constant, here)
    into = tmp_path / "raw"
    assert download.main(["textcaps", "--data-dir", str(into)]) == 0
    assert "textcaps: 3 fetched, 0 there already, 0 failed" in capsys.readouterr().out
    assert sorted(path.name for path in into.iterdir()) == [
        "TextCaps_0.1_train.json",
        "TextCaps_0.1_val.json",
        "train_val_images.zip",
    ]
    assert len(build("textcaps", data_dir=str(into))) == 3
    assert download.main(["textcaps", "--data-dir", str(into)]) == 0
    assert "0 fetched, 3 there already" in capsys.readouterr().out
    (into / "TextCaps_0.1_val.json").unlink()
    (server.root / "TextCaps_0.1_val.json").unlink()
    assert download.main(["textcaps", "--data-dir", str(into)]) == 1
    captured = capsys.readouterr()
    assert (
        "2 there already, 1 failed" in captured.out
        and "TextCaps_0.1_val.json: not there (404)" in captured.err
    )


def test_several_datasets_get_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(self: fetch.Downloader, source: Source) -> bool:
        asked.append((self.folder, source.path))
        return True

    monkeypatch.setattr(fetch.Downloader, "fetch", note)
    assert download.main(["coco", "cc12m", "--data-dir", str(tmp_path), "--name", "small"]) == 0
    assert (str(tmp_path / "coco"), "train2014.zip") in asked and (
        str(tmp_path / "cc12m"),
        "cc12m-train-0022.tar",
    ) in asked
    assert len({path for folder, path in asked if folder.endswith("cc12m")}) == 23


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cc12m", "--parts", "x"], "parts='x'"),
        (["cc12m", "--name", "tiny"], "tiny"),
        (["sa1b"], "links=PATH"),
        (["coco", "--parts", "1"], "doesn't have a 'parts' key"),
    ],
)
def test_bad_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Any, message: Any
) -> None:
    assert download.main([*arguments, "--data-dir", str(tmp_path / "x")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope"], "coco"),
        (["demo"], "coco"),
        (["folder"], "coco"),
        (["coco", "--num-threads", "0"], "threads"),
    ],
)
def test_unknown_or_local_datasets_and_no_threads_are_refused(
    arguments: Any, told: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        download.main(arguments)
    assert stop.value.code == 2 and told in capsys.readouterr().err
