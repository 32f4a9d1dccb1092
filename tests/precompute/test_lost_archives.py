"""An archive that cannot be read costs its rows and not the run; what every archive would share stops it at once."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from huggingface_hub.utils import httpx

from loader.format import Manifest
from precompute.errors import SourceError
from precompute.input import row_values
from precompute.input.open_records import open_records
from precompute.input.records import Records, SourceOptions
from precompute.input.units import Unit
from tests.support.launching import TOY, run_precompute
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.raw.server import Server, serve

UNREADABLE = Path("/proc/self/mem")  # whose first bytes give EIO, as a damaged sector does
OURS, THEIRS = "builders/webdataset", "webdataset"

Open = Callable[[str], Records]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for number in range(3):
        pictures = [
            (f"{i}.{suffix}", data) for i in range(2) for suffix, data in (("jpg", jpeg(i)), ("txt", b"a"))
        ]
        write_tar(tmp_path / "raw" / f"{number}.tar", pictures)
    return tmp_path / "raw"


@pytest.fixture
def server(tars: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # which refuses loopback too
    with serve(tars) as running:
        yield running


@pytest.fixture
def opened(server: Server) -> Open:
    """The records of three tars on the server, by links that carry a key."""

    def open_them(dataset: str, limit: int | None = None) -> Records:
        links = ", ".join(f'"{server.url}/{number}.tar?key=SECRET"' for number in range(3))
        columns = {} if dataset == OURS else {"image_column": "jpg", "caption_column": "txt"}
        return open_records(
            SourceOptions(dataset, options=(f"data_files=[{links}]",), limit=limit, **columns)
        )

    return open_them


def answer(status: int, times: int = 10**9) -> Callable[[Any, bytes], bool]:
    left = iter(range(times))

    def fault(handler: Any, data: bytes) -> bool:
        if next(left, None) is None:
            return False
        handler.answer(status, b"")
        return True

    return fault


def outcomes(records: Records) -> list[list[str | None]]:
    return [[record.reject for record in records.rows(unit)] for unit in records.units]


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("dataset", [OURS, THEIRS])
def test_archive_that_is_gone_costs_its_rows(
    opened: Open, server: Server, waits: list[float], dataset: str, status: int
) -> None:
    records = opened(dataset)
    server.faults["1.tar"] = answer(status)
    assert outcomes(records) == [[None, None], ["bad_archive"], [None, None]]
    (lost,) = records.rows(records.units[1])
    assert str(status) in lost.extras["error"] and "SECRET" not in str(lost)
    assert not waits


def test_archive_that_is_gone_does_not_stop_a_trial_run(tmp_path: Path, tars: Path) -> None:
    (tars / "1.tar").write_bytes((tars / "1.tar").read_bytes()[:5000])
    source = SourceOptions(THEIRS, data_dir=tars, image_column="jpg", caption_column="txt", limit=5)
    records = open_records(source)
    assert records.units == [Unit(0, 0, 0, 2), Unit(1, 1, 0, 1), Unit(2, 2, 0, 2)]
    assert outcomes(records) == [[None, None], ["bad_archive"], [None, None]]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("dataset", [OURS, THEIRS])
def test_refusal_stops_at_once(
    opened: Open, server: Server, waits: list[float], dataset: str, status: int
) -> None:
    records = opened(dataset)
    server.faults["1.tar"] = answer(status)
    with pytest.raises(SourceError, match=rf"cannot read row 1 of unit 1: .*{status}.*run again") as told:
        outcomes(records)
    assert not waits and "SECRET" not in str(told.value)


@pytest.mark.parametrize("dataset", [OURS, THEIRS])
def test_outage_is_waited_out(opened: Open, server: Server, waits: list[float], dataset: str) -> None:
    records = opened(dataset)
    server.faults["1.tar"] = answer(503, 24)
    assert outcomes(records) == [[None, None]] * 3
    assert max(waits) == 60


@pytest.mark.parametrize("dataset", [OURS, THEIRS])
def test_outage_that_stays_stops_the_run(
    opened: Open, server: Server, waits: list[float], dataset: str
) -> None:
    records = opened(dataset)
    server.faults["1.tar"] = answer(503)
    with pytest.raises(SourceError, match=r"unit 1: .*503.*Finished units are kept") as told:
        outcomes(records)
    assert sum(waits) >= 1800 and "SECRET" not in str(told.value)


def failing_once(error: Exception, row: int) -> Callable[[Records, Unit], Iterator[Any]]:
    raw, left = Records.raw_rows, iter([error])

    def read(self: Records, unit: Unit) -> Iterator[Any]:
        for index, values in enumerate(raw(self, unit)):
            if (unit.index, index) == (1, row) and (fault := next(left, None)):
                raise fault
            yield values

    return read


def foreign(folder: Path) -> Records:
    return open_records(SourceOptions(THEIRS, data_dir=folder, image_column="jpg", caption_column="txt"))


def test_connection_lost_in_the_middle_loses_and_repeats_no_row(
    tars: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [record.key for unit in range(3) for record in foreign(tars).rows(Unit(unit, unit))]
    monkeypatch.setattr(Records, "raw_rows", failing_once(ConnectionError("Server Disconnected"), 1))
    records = foreign(tars)
    assert [record.key for unit in records.units for record in records.rows(unit)] == keys
    assert waits == [1]


def test_disk_that_cannot_read_an_archive_of_others(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(Records, "raw_rows", failing_once(fault, 1))
    assert outcomes(foreign(tars)) == [[None, None], [None, "bad_archive"], [None, None]]


def test_disk_that_is_gone_stops_at_once(
    tars: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.ENOTCONN, errno.ESTALE, errno.ENOENT, errno.EACCES):
        with monkeypatch.context() as patch:
            patch.setattr(Records, "raw_rows", failing_once(OSError(number, os.strerror(number)), 1))
            with pytest.raises(SourceError, match=os.strerror(number)):
                outcomes(foreign(tars))
    assert not waits


@pytest.mark.skipif(not UNREADABLE.exists(), reason="needs a file that cannot be read")
def test_unreadable_archive_is_done_again_once_it_is_mended(tars: Path, tmp_path: Path) -> None:
    whole, output = (tars / "1.tar").read_bytes(), tmp_path / "out"
    (tars / "1.tar").unlink()
    (tars / "1.tar").symlink_to(UNREADABLE)
    command = [OURS, "--data-dir", tars, "--output", output, *TOY, "--resolutions", "64"]

    def counts() -> tuple[int, dict[str, int]]:
        split = Manifest.from_json((output / "manifest.json").read_bytes()).splits["train"]
        return split.samples, split.rejected

    run_precompute(*command)
    assert counts() == (4, {"bad_archive": 1})
    (tars / "1.tar").unlink()
    (tars / "1.tar").write_bytes(whole)
    run_precompute(*command, "--retry-rejected", "bad_archive")
    assert counts() == (6, {})


# --- images that are paths ---


def http_error(reason: BaseException) -> FileNotFoundError:
    """Raise what fsspec calls every failure to ask for a file's size."""
    error = FileNotFoundError("http://127.0.0.1/cat.jpg?key=SECRET")
    error.__cause__ = reason
    return error


@pytest.mark.parametrize(
    "outage", [httpx.ConnectError("no route"), http_error(aiohttp.ClientConnectionError("no route"))]
)
def test_outage_of_an_image_that_is_a_path_is_waited_out(
    outage: Exception, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [outage, outage, io.BytesIO(b"jpeg")]

    def xopen(*_: object) -> Any:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr("datasets.utils.file_utils.xopen", xopen)
    assert row_values.read_image("http://127.0.0.1/cat.jpg?key=SECRET") == b"jpeg"
    assert waits == [1.0, 2.0]


def test_an_image_that_stays_away_stops_the_run_and_one_that_is_gone_is_missing(
    waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(error: Exception) -> Callable[..., Any]:
        def xopen(*_: object) -> Any:
            raise error

        return xopen

    monkeypatch.setattr("datasets.utils.file_utils.xopen", failing(httpx.ConnectError("no route")))
    with pytest.raises(SourceError, match=r"cat.jpg: ConnectError: no route: cannot be read") as caught:
        row_values.read_image("http://127.0.0.1/cat.jpg?key=SECRET")
    assert sum(waits) >= 1800 and "SECRET" not in str(caught.value)
    monkeypatch.setattr("datasets.utils.file_utils.xopen", failing(FileNotFoundError("cat.jpg")))
    assert row_values.read_image("cat.jpg") is None
