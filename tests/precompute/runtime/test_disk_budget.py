"""`--max-disk`: living processes hold room and dead ones do not, and many that look at once take no more than there is."""

import json
import multiprocessing
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from precompute.errors import UsageError
from precompute.input.units import Unit
from precompute.runtime.disk_budget import DiskBudget
from precompute.runtime.leases import Leases
from precompute.runtime.owner import this_process
from precompute.shards.destination import WORK
from precompute.shards.output_folder import OutputFolder
from tests.support.waiting import Clock

UNITS = [Unit(index, index) for index in range(100)]
NOBODY = 2**22 + 5  # no process has a number so high


def lease(folder: Path, name: str, **owner: Any) -> Path:
    """A lease as a process writes it: this one, unless `owner` says otherwise."""
    path = folder / WORK / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"token": "x", **this_process(), **owner}))
    return path


def with_budget(folder: Path, limit: float, largest: int = 0) -> Leases:
    output = OutputFolder(folder)
    return Leases(output, UNITS, gates=[DiskBudget(output, limit, 60.0, largest)])


def test_counts_what_is_here_and_what_others_are_at(tmp_path: Path) -> None:
    room = DiskBudget(OutputFolder(tmp_path), 350 / 1e9, 60.0)
    first = lease(tmp_path, "train-00000.lease-1")
    assert not room.is_left(), "how large is a unit? The first will tell"
    first.unlink()
    assert room.is_left()
    (tmp_path / "train-00000-01.tar").write_bytes(bytes(60))
    (tmp_path / "train-00000-02.tar").write_bytes(bytes(40))
    (tmp_path / "train-00000.json").touch()
    assert room.is_left(), "100 here, 100 for the next"
    lease(tmp_path, "train-00001.lease-1")
    assert room.is_left(), "100 here, 100 of another, 100 for the next"
    lease(tmp_path, "validation-00002.lease-3")
    lease(tmp_path, "pushing.lock.lease-1")
    assert not room.is_left()
    (tmp_path / "train-00000-01.tar").unlink()
    (tmp_path / "train-00000-02.tar").unlink()
    assert room.is_left(), "deleted, and the largest remembered: 2 of others and the next"
    with pytest.raises(UsageError, match="--max-disk"):
        DiskBudget(OutputFolder(tmp_path), 350 / 1e9, 60.0, largest=400).is_left()


def test_killed_processes_hold_no_room(tmp_path: Path) -> None:
    lease(tmp_path, "train-00000.lease-1", pid=NOBODY)
    assert DiskBudget(OutputFolder(tmp_path), 150 / 1e9, 60.0).is_left(), "it was killed in its first unit"
    lease(tmp_path, "train-00001.lease-1", pid=NOBODY)
    (tmp_path / "train-00001.tar").write_bytes(bytes(100))
    room = DiskBudget(OutputFolder(tmp_path), 150 / 1e9, 60.0, largest=100)
    assert room.is_left(), "another, between its last rename and its marker: the tar will be overwritten"
    lease(tmp_path, "train-00001.lease-2")
    assert not room.is_left(), "by the process that is at it now"


def test_silent_process_of_another_machine_holds_room_until_its_time_is_over(
    tmp_path: Path, clock: Clock
) -> None:
    lease(tmp_path, "train-00000.lease-1", host="elsewhere")
    room = DiskBudget(OutputFolder(tmp_path), 1.0, timeout=60)
    assert not room.is_left()
    clock.advance(61)
    assert room.is_left()


def test_run_goes_on_after_one_that_was_killed_in_its_first_unit(tmp_path: Path) -> None:
    lease(tmp_path, "train-00000.lease-1", pid=NOBODY)
    lease(tmp_path, "room.lock.lease-1", pid=NOBODY)
    leases = with_budget(tmp_path, 1.0)
    taken = next(leases.all(threading.Event()))
    assert taken is not None and (taken.unit.index, taken.turn) == (0, 2)


def test_leases_that_are_no_unit_s_do_not_outlive_the_run(tmp_path: Path) -> None:
    """Killed with --push-to and --max-disk, and run again without."""
    leases = Leases(OutputFolder(tmp_path), [])
    for name in ("pushing.lock.lease-1", "room.lock.lease-1"):
        lease(tmp_path, name, pid=NOBODY)
    leases.close()
    assert not (tmp_path / WORK).exists()


def test_process_held_up_while_it_looked_gives_the_unit_back(tmp_path: Path) -> None:
    """Another has looked since, and may have seen the same room."""

    class HeldUp(DiskBudget):
        def is_left(self) -> bool:
            if (tmp_path / WORK / "room.lock.lease-1").exists():
                lease(tmp_path, "room.lock.lease-2")
            return True

    output = OutputFolder(tmp_path)
    assert Leases(output, UNITS, gates=[HeldUp(output, 1.0, 60.0)]).claim() is None
    assert not list((tmp_path / WORK).glob("train-*"))


def take_all(folder: Path, limit: float, largest: int, start: Any, taken: Any, end: Any) -> None:
    leases = with_budget(folder, limit, largest)
    start.wait()
    found = iter(leases.all(threading.Event()).__next__, None)
    taken.put([lease.unit.index for lease in found])
    end.wait()
    os._exit(0)


@pytest.mark.parametrize(("limit", "largest", "expected"), [(1.0, 0, 1), (3.5, 10**9, 3)])
def test_processes_that_look_at_once_take_what_there_is_room_for(
    tmp_path: Path, limit: float, largest: int, expected: int
) -> None:
    context = multiprocessing.get_context("fork")
    start, end, taken = context.Barrier(8), context.Event(), context.Queue()
    arguments = (tmp_path, limit, largest, start, taken, end)
    processes = [context.Process(target=take_all, args=arguments) for _ in range(8)]
    for process in processes:
        process.start()
    units = [unit for _ in processes for unit in taken.get(timeout=200)]
    end.set()
    for process in processes:
        process.join()
    assert len(units) == len(set(units)) == expected
