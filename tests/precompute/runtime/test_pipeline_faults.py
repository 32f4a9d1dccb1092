"""The pipeline when something goes wrong in one of its threads: it stops, says what, and leaves nothing half done."""

import errno
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.archives.backoff import Patience, until
from builders.core.record import Record
from loader.format import Marker
from precompute.encode.batch_encoder import BatchEncoder
from precompute.encode.image import open_image_encoder
from precompute.encode.text import open_text_encoder
from precompute.errors import OutputError, PrecomputeError, SourceError, output_errors
from precompute.input.open_records import open_records
from precompute.input.pixels import Picture, read_picture
from precompute.input.records import Records, SourceOptions
from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.runtime.pipeline import Pipeline
from precompute.runtime.stats import Stats
from precompute.runtime.unit_output import Output
from precompute.shards.destination import WORK
from precompute.shards.markers import marker_paths, read_marker
from precompute.shards.output_folder import OutputFolder
from precompute.shards.tar_writer import TarWriter
from tests.support.raw.photos import jpeg
from tests.support.waiting import wait_until

ROWS = 6
GOOD, BAD = jpeg(0, (64, 64)), b"<html></html>"


def read(record: Record) -> Picture:
    return read_picture(record.image or b"", [32])


class Made:
    """Records made up on the spot: a good one, a bad one, a good one, ..."""

    def __init__(self, rows: Callable[[Unit], Iterator[Record]] | None = None, units: int = 3) -> None:
        self.units = [Unit(index, index) for index in range(units)]
        self.plan = {"units": units}
        self.rows = rows or good_rows


def good_rows(unit: Unit) -> Iterator[Record]:
    for index in range(ROWS):
        yield Record(f"u{unit.index}-{index}", f"caption {index}", BAD if index % 3 == 1 else GOOD)


@pytest.fixture(scope="module")
def encoder() -> BatchEncoder:
    return BatchEncoder(open_image_encoder("toy"), [open_text_encoder("toy")], [32], "moments", 0)


@pytest.fixture
def work(tmp_path: Path, encoder: BatchEncoder) -> Iterator:
    """Work off some records into the folder `out`, as one process does; threads must end, come what may."""

    def alive() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if not thread.daemon}

    before = alive()

    def run(
        records: Any, folder: Path = tmp_path / "out", encoder: Any = encoder, timeout: float = 60
    ) -> Stats:
        folder.mkdir(exist_ok=True)
        leases = Leases(OutputFolder(folder), records.units, timeout)
        output = Output(OutputFolder(folder), 4, {}, records.plan, 2)
        try:
            return Pipeline(records, leases, encoder, output, read, 2, lambda stats: None).run()
        finally:
            leases.close()

    yield run
    assert alive() <= before


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def markers(folder: Path) -> list[Marker]:
    return [read_marker(path) for path in marker_paths(folder)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, encoder: BatchEncoder) -> dict[str, bytes]:
    """The tars of an undisturbed run."""
    folder = tmp_path_factory.mktemp("expected")
    leases = Leases(OutputFolder(folder), Made().units)
    output = Output(OutputFolder(folder), 4, {}, Made().plan, 2)
    Pipeline(Made(), leases, encoder, output, read, 1, lambda stats: None).run()
    leases.close()
    assert len(tars(folder)) == 3
    return tars(folder)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def after(calls: int, call: Callable[..., Any], fault: Callable[..., Any]) -> Callable[..., Any]:
    """`call` so often, then `fault`."""
    count = iter(range(calls))

    def faulty(*args: Any, **kwargs: Any) -> Any:
        return (fault if next(count, None) is None else call)(*args, **kwargs)

    return faulty


@pytest.mark.parametrize("calls", [0, 1, 10, 30, 60])
def test_full_disk_stops_the_run_and_names_the_output(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes], calls: int
) -> None:
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(TarWriter, "put", after(calls, TarWriter.put, full))
        with pytest.raises(OutputError, match=r"--output .*No space left.*run again"), output_errors(folder):
            work(Made())
    assert not folder.joinpath(WORK).exists(), "nothing temporary, and no lease"
    assert tars(folder).items() <= expected.items()
    work(Made())
    assert tars(folder) == expected


def test_disk_full_at_the_first_lease(work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="No space left"), output_errors(tmp_path / "out"):
            work(Made())
    assert not (tmp_path / "out" / WORK).exists()


@pytest.mark.parametrize("row", [0, 3])
def test_reader_that_fails_in_the_middle_of_a_unit(
    work: Any, tmp_path: Path, expected: dict[str, bytes], row: int
) -> None:
    def rows(unit: Unit) -> Iterator[Record]:
        for index, record in enumerate(good_rows(unit)):
            if (unit.index, index) == (1, row):
                raise SourceError("the network is gone")
            yield record

    with pytest.raises(SourceError, match="the network is gone"):
        work(Made(rows))
    assert [marker.unit for marker in markers(tmp_path / "out")] in ([], [0])
    assert not (tmp_path / "out" / WORK).exists()
    work(Made())
    assert tars(tmp_path / "out") == expected


@pytest.mark.parametrize("method", ["launch", "collect"])
def test_encoder_that_fails(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes], method: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("an illegal instruction")

    with monkeypatch.context() as patch:
        patch.setattr(BatchEncoder, method, after(3, getattr(BatchEncoder, method), fail))
        with pytest.raises(RuntimeError, match="illegal instruction"):
            work(Made())
    assert not (tmp_path / "out" / WORK).exists()
    work(Made())
    assert tars(tmp_path / "out") == expected


def test_sigterm_gives_the_leases_back(work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives in the main thread as SystemExit, wherever that is."""

    def stop(*_: object) -> None:
        raise SystemExit(143)

    for method, calls in (("launch", 2), ("collect", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(BatchEncoder, method, after(calls, getattr(BatchEncoder, method), stop))
            with pytest.raises(SystemExit):
                work(Made())
        assert not (tmp_path / "out" / WORK).exists()


def test_decoder_that_runs_out_of_memory_is_not_taken_for_a_bad_image(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, bytes]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(PrecomputeError, match="--num-threads: no memory left"):
            work(Made())
    work(Made())
    assert tars(tmp_path / "out") == expected, "nothing is lost"


@pytest.mark.parametrize("index", [0, 2])
def test_unit_lost_to_another_process_is_dropped_and_the_rest_goes_on(
    work: Any, tmp_path: Path, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture, index: int
) -> None:
    folder = tmp_path / "out"

    def rows(unit: Unit) -> Iterator[Record]:
        for number, record in enumerate(good_rows(unit)):
            if (unit.index, number) == (1, index) and not stolen:
                stolen.append(1)
                (folder / WORK / "train-00001.lease-2").write_text("{}")  # some other machine's, already dead
            yield record

    stolen: list[int] = []
    work(Made(rows), timeout=0.3)
    assert "unit 1: another process took over" in caplog.text
    assert tars(folder) == expected, "it was done in the end, by the next turn"
    assert not folder.joinpath(WORK).exists()


def test_units_without_rows_or_without_a_readable_one(work: Any, tmp_path: Path) -> None:
    def rows(unit: Unit) -> Iterator[Record]:
        return (
            record for record in good_rows(unit) if unit.index == 2 or (unit.index and record.image is BAD)
        )

    work(Made(rows))
    assert [(m.rows, m.samples, m.rejected) for m in markers(tmp_path / "out")] == [
        (0, 0, {}),
        (2, 0, {"undecodable": 2}),
        (6, 4, {"undecodable": 2}),
    ]


def test_repeated_key_is_rejected_once_per_repetition(work: Any, tmp_path: Path) -> None:
    def rows(unit: Unit) -> Iterator[Record]:
        for record in good_rows(unit):
            yield record
            yield record

    work(Made(rows, units=1))
    (marker,) = markers(tmp_path / "out")
    assert (marker.samples, marker.rejected) == (4, {"undecodable": 2, "duplicate_key": 6})


def test_what_waits_between_the_threads_is_bounded(
    work: Any, monkeypatch: pytest.MonkeyPatch, encoder: BatchEncoder
) -> None:
    """A slow device must hold the reader up: 400 rows are not read ahead of a batch of two."""
    ahead: list[int] = []
    read, encoded = [0], [0]

    def rows(unit: Unit) -> Iterator[Record]:
        for index in range(400):
            read[0] += 1
            yield Record(f"k{index}", "same", GOOD)

    launch = BatchEncoder.launch

    def slow(self: BatchEncoder, samples: Any) -> Any:
        time.sleep(0.002)
        encoded[0] += len(samples)
        ahead.append(read[0] - encoded[0])
        return launch(self, samples)

    monkeypatch.setattr(BatchEncoder, "launch", slow)
    work(Made(rows, units=1))
    assert encoded[0] == 400
    assert max(ahead) <= 4 * 2 + 2 * 2 + 2 + 2


# --- datasets that are not ours ---


def webdataset_tar(path: Path, samples: int) -> bytes:
    with tarfile.open(path, "w") as tar:
        for index in range(samples):
            for suffix, data in (("jpg", jpeg(index, (64, 64))), ("txt", f"caption {index}".encode())):
                info = tarfile.TarInfo(f"{index:04d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()


def open_webdataset(folder: Path) -> Records:
    source = SourceOptions("webdataset", data_dir=folder, image_column="jpg", caption_column="txt")
    return open_records(source)


def test_archive_that_breaks_off_costs_its_rest_and_is_counted(work: Any, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(2):
        data = webdataset_tar(tmp_path / "raw" / f"train-{number}.tar", 8)
    (tmp_path / "raw" / "train-1.tar").write_bytes(data[: len(data) * 2 // 3])
    work(open_webdataset(tmp_path / "raw"))
    whole, broken = markers(tmp_path / "out")
    assert (whole.samples, whole.rejected) == (8, {})
    assert 2 <= broken.samples < 8 and broken.rejected == {"bad_archive": 1}


def test_two_archives_may_use_the_same_keys(work: Any, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(2):
        webdataset_tar(tmp_path / "raw" / f"train-{number}.tar", 2)
    work(open_webdataset(tmp_path / "raw"))
    keys = []
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            keys += [name.removesuffix(".txt") for name in tar.getnames() if name.endswith(".txt")]
    assert keys == [
        "00000-0000", "00000-0001", "00001-0000", "00001-0001",
    ]  # fmt: skip


def test_source_that_cannot_be_read_is_not_blamed_on_the_output(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    webdataset_tar(tmp_path / "raw" / "train-0.tar", 4)
    records = open_webdataset(tmp_path / "raw")
    raw = Records.raw_rows

    def failing(self: Records, unit: Unit) -> Iterator[Any]:
        yield next(raw(self, unit))
        raise ConnectionError("Server disconnected")

    monkeypatch.setattr("builders.archives.backoff.PATIENCE", 0)
    monkeypatch.setattr(Records, "raw_rows", failing)
    with pytest.raises(SourceError, match="webdataset: cannot read row 2 of unit 0: Server disconnected"):
        with output_errors(tmp_path / "out"):
            work(records)
    assert not issubclass(SourceError, OSError) and issubclass(SourceError, PrecomputeError)


def test_a_reader_that_waits_out_an_outage_is_not_waited_for(
    work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is asked to stop has seconds to give its units back, and not a pause of a minute."""

    def rows(unit: Unit) -> Iterator[Record]:
        yield from good_rows(unit)
        waiting.set()
        assert not Patience().wait("the server answered 503", "600")
        raise SourceError("the server answered 503")

    def stop(*_: object) -> None:
        assert waiting.wait(200)
        raise SystemExit(143)

    waiting = threading.Event()
    monkeypatch.setattr(BatchEncoder, "launch", after(1, BatchEncoder.launch, stop))
    with until(threading.Event()), pytest.raises(SystemExit):
        work(Made(rows, units=1))
    assert not (tmp_path / "out" / WORK).exists()


def test_unit_stolen_between_its_opening_and_its_commit_is_not_made_visible(
    work: Any, tmp_path: Path, expected: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """It holds as long as the thief has the lease, who may be about to revoke what the first owner has written."""
    folder, done, seen = tmp_path / "out", threading.Event(), []
    stolen = folder / WORK / "train-00001.lease-2"

    def rows(unit: Unit) -> Iterator[Record]:
        for number, record in enumerate(good_rows(unit)):
            if (unit.index, number) == (1, ROWS - 1) and not seen:
                wait_until(lambda: list((folder / WORK).glob("train-00001.1-*")))
                owner = json.loads((folder / WORK / "train-00001.lease-1").read_text())
                stolen.write_text(json.dumps({**owner, "token": "thief"}))
                seen.append(1)
            yield record

    def give_back() -> None:
        wait_until(lambda: "unit 1: another process took over" in caplog.text or done.is_set())
        seen.extend(folder.glob("train-00001*"))
        stolen.unlink(missing_ok=True)

    thief = threading.Thread(target=give_back)
    thief.start()
    work(Made(rows))
    done.set()
    thief.join()
    assert seen == [1], "nothing of the unit was there while it was another's"
    assert tars(folder) == expected
