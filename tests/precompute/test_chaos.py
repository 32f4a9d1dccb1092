"""Processes are killed, stopped and starved of disk at random instants; the tars are those of an undisturbed run."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from precompute.verify import Config as VerifyConfig
from precompute.verify import verify
from tests.support.launching import leftovers, tars
from tests.support.processes import finish
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.waiting import wait_until

UNITS, ROWS = 12, 7
KILLS, KILLS_A_RUN = 60, 16
WRITES_A_UNIT = 12  # at least
SLOW = 0.002  # seconds a write: a unit takes about 0.2 s, as long as a process needs to start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGSTOP is POSIX's")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve tars of seven rows; the third of each is no image, and the last has no caption."""
    folder = tmp_path_factory.mktemp("raw")
    for unit in range(UNITS):
        members = []
        for row in range(ROWS):
            key = f"{unit:03d}{row:03d}"
            members.append((f"{key}.jpg", b"<html>" if row == 2 else jpeg(unit + row, (256, 256))))
            if row < ROWS - 1:
                members.append((f"{key}.txt", f"caption {row} of {unit}".encode()))
        write_tar(folder / f"{unit:05d}.tar", members)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, start: Any) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    finish(start, output, data)
    assert len(tars(output)) == 2 * UNITS
    return output


def check(output: Path, undisturbed: Path) -> None:
    """It is as if nothing had happened."""
    assert tars(output) == tars(undisturbed)
    for path in undisturbed.glob("*.parquet"):
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert (output / "manifest.json").read_bytes() == (undisturbed / "manifest.json").read_bytes()
    assert not leftovers(output)
    assert not verify(VerifyConfig(str(output))).findings


def wait_for(output: Path, pattern: str) -> None:
    wait_until(lambda: list(output.glob(pattern)))


def wait_for_a_stop(process: Any) -> None:
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)


def test_killed_at_random_instants(tmp_path: Path, data: Path, undisturbed: Path, start: Any) -> None:
    """Two to four processes; whoever dies is replaced, until a run is through; so many runs as it takes."""
    kills, seed = 0, 0
    while kills < KILLS:
        random_ = random.Random(seed)
        output = tmp_path / f"run-{seed}"
        count = random_.randint(2, 4)
        processes = [start(output, data, slow=SLOW, timeout=2.0) for _ in range(count)]
        killed = 0
        while killed < KILLS_A_RUN and all(process.exitcode is None for process in processes):
            time.sleep(random_.uniform(0, 0.25))
            victim = random_.randrange(count)
            if processes[victim].is_alive():
                processes[victim].kill()
                killed += 1
                processes[victim] = start(output, data, slow=SLOW, timeout=2.0)
        for process in processes:
            process.join(timeout=300)
        assert {process.exitcode for process in processes} == {0}
        print(f"seed {seed}: {count} processes, {killed} kills")
        check(output, undisturbed)
        shutil.rmtree(output)
        kills, seed = kills + killed, seed + 1


@pytest.mark.parametrize("seed", range(4))
def test_disk_that_fills_up(tmp_path: Path, data: Path, undisturbed: Path, start: Any, seed: int) -> None:
    output = tmp_path / "out"
    processes = [start(output, data, full_disk=2 * seed + i) for i in range(2)]
    for process in processes:
        process.join(timeout=300)
    assert 1 in {process.exitcode for process in processes}, "at least one ran into it, and said so"
    assert tars(output).items() <= tars(undisturbed).items()
    if leftovers(output):  # of a whole run, or of one that stopped and tidied up
        assert leftovers(output) == [".work"] and not list((output / ".work").iterdir())
    finish(start, output, data)
    check(output, undisturbed)


@pytest.mark.parametrize("write", [1, 7, WRITES_A_UNIT + 1])
def test_sigterm_gives_the_work_back(
    tmp_path: Path, data: Path, undisturbed: Path, start: Any, write: int
) -> None:
    """The other process takes it up at once: the leases of both would only go stale in an hour."""
    output = tmp_path / "out"
    first = start(output, data, slow=SLOW, timeout=3600, signal_at=(write, signal.SIGTERM))
    wait_for(output, ".work/*.lease-1")
    second = start(output, data, slow=SLOW, timeout=3600)
    first.join(timeout=300)
    assert first.exitcode == 128 + signal.SIGTERM
    second.join(timeout=300)
    assert second.exitcode == 0
    check(output, undisturbed)


@pytest.mark.parametrize("write", [1, 7, WRITES_A_UNIT + 1])
def test_stopped_process_is_overtaken_and_wakes_to_find_it_out(
    tmp_path: Path, data: Path, undisturbed: Path, start: Any, write: int
) -> None:
    output = tmp_path / "out"
    asleep = start(output, data, timeout=0.6, signal_at=(write, signal.SIGSTOP))
    wait_for_a_stop(asleep)
    held = [path.name for path in (output / ".work").glob("*.lease-1")]
    assert held, "it was to be stopped with a unit in its hands"
    finish(start, output, data, timeout=0.6)
    assert asleep.is_alive()
    os.kill(asleep.pid, signal.SIGCONT)
    asleep.join(timeout=300)
    assert asleep.exitcode == 0, "it finds all done, and nothing of its own to add"
    check(output, undisturbed)


@pytest.mark.parametrize(
    "seen", [".work/train-*.lease-2", ".work/train-*.2-*/0.tar", ".work/train-*.2-*/1.tar"]
)
def test_stopped_process_wakes_while_the_other_works_on_its_unit(
    tmp_path: Path, data: Path, undisturbed: Path, start: Any, seen: str
) -> None:
    output = tmp_path / "out"
    asleep = start(output, data, slow=SLOW, timeout=0.6, signal_at=(7, signal.SIGSTOP))
    wait_for_a_stop(asleep)
    awake = start(output, data, slow=SLOW, timeout=0.6)
    wait_until(lambda: list(output.glob(seen)) or not awake.is_alive())
    os.kill(asleep.pid, signal.SIGCONT)
    for process in (asleep, awake):
        process.join(timeout=300)
        assert process.exitcode == 0
    check(output, undisturbed)
