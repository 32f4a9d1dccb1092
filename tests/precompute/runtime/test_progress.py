"""What a run says of itself: which stage the others wait for, and how long the device waited."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.core.record import Record
from loader.format import Split
from precompute.encode.batch_encoder import BatchEncoder
from precompute.encode.image import ImageEncoder, open_image_encoder
from precompute.input.pixels import Picture, read_picture
from precompute.input.units import Unit
from precompute.runtime import progress
from precompute.runtime.leases import Leases
from precompute.runtime.pipeline import Pipeline
from precompute.runtime.progress import progress_bar, summary
from precompute.runtime.stats import Stats
from precompute.runtime.unit_output import Output
from precompute.shards.output_folder import OutputFolder
from precompute.shards.unit_writer import UnitWriter
from tests.support.raw.photos import jpeg
from tests.support.waiting import Clock, wait_until

ROWS, SLOW = 12, 0.04
JUMP = 1.0  # seconds that the clock jumps for what is slow: more than a busy machine takes for all else
PHOTO = jpeg(0, (64, 64))


def read(record: Record) -> Picture:
    return read_picture(record.image or b"", [32])


class Made:
    def __init__(self, clock: Clock | None = None, units: int = 2) -> None:
        self.units = [Unit(index, index) for index in range(units)]
        self.plan = {"units": units}
        self._clock = clock

    def rows(self, unit: Unit) -> Iterator[Record]:
        for index in range(ROWS):
            if self._clock:
                pause(self._clock)
            yield Record(f"u{unit.index}-{index}", f"caption {index}", PHOTO)


def pause(clock: Clock) -> None:
    """Long enough for the others to wait, and then by the clock far longer."""
    time.sleep(SLOW)
    clock.advance(JUMP)


def slowly(call: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    def slow(*args: Any, **kwargs: Any) -> Any:
        pause(clock)
        return call(*args, **kwargs)

    return slow


@pytest.fixture
def encoder() -> BatchEncoder:
    return BatchEncoder(open_image_encoder("toy"), [], [32], "moments", 0)  # next to no time of its own


def run(
    folder: Path,
    encoder: BatchEncoder,
    records: Made | None = None,
    picture: Callable[[bytes, str], Picture] = read,
    on_progress: Callable[[Stats], None] = lambda stats: None,
) -> Stats:
    records = records or Made()
    leases = Leases(OutputFolder(folder), records.units)
    output = Output(OutputFolder(folder), 100, {}, records.plan, 1)
    try:
        return Pipeline(records, leases, encoder, output, picture, 1, on_progress).run()
    finally:
        leases.close()


def test_a_slow_source_is_told(tmp_path: Path, encoder: BatchEncoder, clock: Clock) -> None:
    stats = run(tmp_path, encoder, Made(clock))
    assert stats.bottleneck == "reading" and 0.5 < stats.waited <= 1


def test_slow_decoding_is_told(tmp_path: Path, encoder: BatchEncoder, clock: Clock) -> None:
    stats = run(tmp_path, encoder, picture=slowly(read, clock))
    assert stats.bottleneck == "decoding" and 0.5 < stats.waited <= 1


def test_a_slow_writer_is_told(
    tmp_path: Path, encoder: BatchEncoder, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(UnitWriter, "write", slowly(UnitWriter.write, clock))
    stats = run(tmp_path, encoder)
    assert stats.bottleneck == "writing" and stats.waited > 0.5


def test_a_slow_device_is_told(
    tmp_path: Path, encoder: BatchEncoder, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(ImageEncoder, "encode", slowly(ImageEncoder.encode, clock))
    stats = run(tmp_path, encoder)
    assert stats.bottleneck == "the device" and stats.waited < 0.5


def test_a_slow_host_is_told_and_the_device_waits_for_it(
    tmp_path: Path, encoder: BatchEncoder, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(encoder, "collect", slowly(encoder.collect, clock))
    stats = run(tmp_path, encoder)
    assert stats.bottleneck == "the host" and stats.waited > 0.5


def test_waiting_for_the_last_units_of_others_is_no_fault_of_this_process(
    tmp_path: Path, encoder: BatchEncoder, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(ImageEncoder, "encode", slowly(ImageEncoder.encode, clock))
    other = Leases(OutputFolder(tmp_path), Made().units)
    held = other.claim()
    assert held is not None

    def give_back() -> None:
        wait_until((tmp_path / "train-00001.json").exists)  # all but ours is done
        time.sleep(5 * SLOW)
        clock.advance(10 * JUMP)
        other.release(held)

    thread = threading.Thread(target=give_back)
    thread.start()
    stats = run(tmp_path, encoder)
    thread.join()
    other.close()
    assert stats.images == 2 * ROWS
    assert stats.idle > 0.5 and stats.bottleneck == "the device" and stats.waited < 0.5


def test_the_bar_says_it_live(
    tmp_path: Path,
    encoder: BatchEncoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: Clock,
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    leases = Leases(OutputFolder(tmp_path), Made().units)
    with progress_bar(leases, shown=True) as on_progress:
        run(tmp_path, encoder, Made(clock), on_progress=on_progress)
    leases.close()
    shown = capsys.readouterr().err
    assert f"{2 * ROWS} images, " in shown.splitlines()[-1] and "/s, reading, device waits " in shown


def test_the_bar_counts_rows_where_they_are_known_and_fits_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = [Unit(index, 0, 4000 * index, 4000 * (index + 1)) for index in range(300)]
    leases = Leases(OutputFolder(tmp_path), units)
    with progress_bar(leases, shown=True) as on_progress:
        on_progress(Stats(images=123_456, seconds=1000.0, decoding=900.0))
    leases.close()
    last = capsys.readouterr().err.splitlines()[-1].split("\r")[-1]
    assert last.startswith("123456/1200000 rows, ") and "123,456 images, 123.5/s, decoding" in last[:68]


def test_the_table_at_the_end_says_it(tmp_path: Path) -> None:
    split = Split({}, 1, (), {"undecodable": 2})
    text = summary(
        split, 10, Stats(10, 12.0, reading=1, decoding=4, writing=2, idle=2, device=5, awaited=2), 13.0
    )
    rows = dict(line.rsplit(maxsplit=1) for line in io.StringIO(text).read().splitlines())
    assert rows["device waited"] == "50%" and rows["bottleneck"] == "decoding"
