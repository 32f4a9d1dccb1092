"""What a run says of itself: which stage the others wait for, and how long the device waited."""

import io
import re
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
from precompute.runtime.forecast import Forecast, Outlook
from precompute.runtime.leases import Leases
from precompute.runtime.pipeline import Pipeline
from precompute.runtime.progress import ProgressBar, summary
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


def bar_of(
    units: list[Unit], folder: Path, before: tuple[int, int] = (0, 0), rows: int | None = None
) -> ProgressBar:
    leases = Leases(OutputFolder(folder), units)
    leases.close()
    return ProgressBar(leases, rows, before, shown=True)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.rstrip("\n").split("\r")[-1].rstrip()


def test_the_bar_says_it_live_and_ends_on_what_is_there(
    tmp_path: Path,
    encoder: BatchEncoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    clock: Clock,
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setenv("COLUMNS", "100")
    bar = bar_of(Made().units, tmp_path)
    run(tmp_path, encoder, Made(clock), on_progress=bar.on_progress)
    assert re.search(r"images, .* left, reading, [\d.]+/s, device waits \d+%", last_line(capsys))
    bar.end(rows=2 * ROWS)
    bar.close()
    assert last_line(capsys).startswith(f"{2 * ROWS}/{2 * ROWS} images, 00:00 left, reading, ")


def test_where_nothing_was_left_to_do_the_bar_tells_of_no_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = bar_of(Made().units, tmp_path, before=(2, 2 * ROWS))
    bar.end(rows=2 * ROWS)
    bar.close()
    assert last_line(capsys) == f"{2 * ROWS}/{2 * ROWS} images, 00:00 left"


@pytest.mark.parametrize("rows", [12_000_000, None])
def test_the_bar_fits_a_narrow_terminal_with_the_bottleneck(
    rows: int | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setenv("COLUMNS", "60")
    units = [Unit(n, n) for n in range(300)]
    bar = bar_of(units, tmp_path, (30, 1_200_000), rows)
    for images in (1, 123_457):
        done = Stats(images, 100.0, decoding=90.0, rows=images, rows_read=images, units_read=images / 40_000)
        clock.advance(1000)
        bar.on_progress(done)
    line = last_line(capsys)
    total = "12,000,000" if rows else "~12.0M"
    assert line.startswith(f"1,323,457/{total} images, ") and " left, decoding" in line and len(line) < 60
    bar.close()


class Ticks:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


SEEN = [
    Stats(),
    Stats(rows=50, rows_read=100, units_read=0.5),
    Stats(rows=400, rows_read=400, units_read=2.0),
]


def outlooks(
    before: tuple[int, int], peers: int, finished: tuple[int, ...] = (0, 0, 2), rows: int | None = None
) -> list[Outlook]:
    """What is told of a run of eight units."""
    clock, looks = Ticks(), []
    forecast = Forecast(8, rows, before, peers, clock)
    for stats, others in zip(SEEN, finished, strict=True):
        looks.append(forecast.look(stats, others))
        clock.now += 10.0
    return looks


def test_the_time_that_is_left_is_told_before_the_first_unit_is_done() -> None:
    first, second, third = outlooks((0, 0), 1)
    assert (first.total, first.seconds) == (None, None)
    # Half a unit has 100 rows: 1,600 in all, at 5 a second.
    assert (second.images, second.total, second.is_exact) == (50, 1600, False)
    assert second.seconds == pytest.approx(1550 / 5)
    assert (third.images, third.seconds) == (400, pytest.approx(1200 / 20))


def test_processes_that_began_together_are_taken_to_be_alike_until_they_finish_a_unit() -> None:
    _, alone, _ = outlooks((0, 0), 1)
    _, second, third = outlooks((0, 0), 4, finished=(0, 0, 5))
    assert alone.seconds and second.seconds == pytest.approx(alone.seconds / 4)
    # Two units of this process, three of others.
    assert third.images == 5 * 200 and third.rate == pytest.approx(1000 / 20)


def test_what_was_finished_before_counts_and_is_in_no_rate() -> None:
    first, second, _ = outlooks((2, 200), 1, finished=(2, 2, 4), rows=800)
    assert (first.images, first.total, first.is_exact) == (200, 800, True)
    assert (second.images, second.rate) == (250, pytest.approx(5))


def test_the_table_at_the_end_says_it(tmp_path: Path) -> None:
    split = Split({}, 1, (), {"undecodable": 2})
    text = summary(
        "latents",
        split,
        10,
        Stats(10, 12.0, reading=1, decoding=4, writing=2, idle=2, device=5, awaited=2),
        13.0,
    )
    rows = dict(line.rsplit(maxsplit=1) for line in io.StringIO(text).read().splitlines())
    assert rows["device waited"] == "50%" and rows["bottleneck"] == "decoding"
