"""Leases: each unit to one process at a time, and to another once its owner is dead or silent."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.board import Free
from precompute.runtime.leases import Lease, Leases
from precompute.runtime.owner import this_process
from precompute.shards.destination import WORK
from precompute.shards.output_folder import OutputFolder
from precompute.shards.unit_writer import SidecarRow, UnitWriter
from tests.support.faulty_folder import fail
from tests.support.waiting import Clock, wait_until

UNITS = [Unit(index, index) for index in range(3)]


@pytest.fixture
def process(tmp_path: Path) -> Iterator:
    """Make the leases of one more process. All are of this one in truth, and differ by their tokens."""
    made: list[Leases] = []

    def make(timeout: float = 60.0, units: list[Unit] = UNITS, split: str = "train") -> Leases:
        made.append(Leases(OutputFolder(tmp_path, split), units, timeout))
        return made[-1]

    yield make
    for leases in made:
        leases.close()


def finish(folder: Path, *indexes: int, split: str = "train") -> None:
    for index in indexes:
        (folder / f"{split}-{index:05d}.json").write_text("{}")


def path_of(lease: Lease) -> Path:
    output = lease.claim.output
    assert isinstance(output, OutputFolder)
    return output.path / WORK / lease.claim.file


def rewrite(lease: Lease, **owner: object) -> None:
    """Write a lease as if another process had done it."""
    path = path_of(lease)
    path.write_text(json.dumps({**json.loads(path.read_text()), **owner}))


def index_of(lease: Lease | None) -> int | None:
    return None if lease is None else lease.unit.index


def test_each_unit_is_leased_once(process) -> None:
    a, b = process(), process()
    assert [index_of(leases.claim()) for leases in (a, b, a, b)] == [0, 1, 2, None]


def test_many_racing_claims_get_each_unit_once(process) -> None:
    units = [Unit(index, index) for index in range(40)]
    claimed: list[int] = []

    def work(leases: Leases) -> None:
        while (lease := leases.claim()) is not None:
            claimed.append(lease.unit.index)

    threads = [threading.Thread(target=work, args=(process(units=units),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(40))


def test_finished_units_are_not_dealt_out(process, tmp_path: Path) -> None:
    finish(tmp_path, 0, 2)
    finish(tmp_path, 1, split="validation")
    leases = process()
    assert leases.finished() == {0, 2}
    assert index_of(leases.claim()) == 1
    assert leases.claim() is None


def test_unit_finished_between_look_and_lease_is_given_back(process, tmp_path: Path) -> None:
    leases = process()
    finish(tmp_path, 0)
    assert leases.take(Free(UNITS[0], 1)) is None
    assert not list((tmp_path / WORK).glob("train-00000*"))


def test_unit_of_a_dead_process_comes_round_at_once(process) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lease = process().claim()
    rewrite(lease, pid=dead.pid)
    again = process().claim()
    assert (index_of(again), again.turn) == (0, 2)


def test_number_of_a_dead_process_given_to_a_new_one_does_not_keep_its_units(process) -> None:
    rewrite(process().claim(), started=12345.0)
    assert index_of(process().claim()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the clock is all there is")
def test_step_of_the_clock_kills_nobody(process, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = process().claim()
    boot = psutil._pslinux.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot + 3600)
    assert index_of(process().claim()) == 1
    lease.check()


def test_process_of_another_machine_is_judged_by_its_heartbeat(process, clock: Clock) -> None:
    lease, other = process(timeout=3600).claim(), process(timeout=60, units=UNITS[:1])
    rewrite(lease, host="elsewhere", pid=2**22 + 1)
    for beat in range(1, 5):
        os.utime(path_of(lease), (beat, beat))  # by a clock of its own, and not ours
        assert other.claim() is None, "it was beating"
        clock.advance(50)
    assert other.claim() is None
    clock.advance(11)
    taken = other.claim()
    assert (index_of(taken), taken.turn) == (0, 2)


def test_a_lease_in_use_is_touched(process) -> None:
    lease = process(timeout=0.3).claim()
    os.utime(path_of(lease), (0, 0))
    wait_until(lambda: path_of(lease).stat().st_mtime > 0)


def test_lease_that_died_before_its_owner_was_written_goes_stale(
    process, tmp_path: Path, clock: Clock
) -> None:
    leases = process(timeout=60, units=UNITS[:1])
    (tmp_path / WORK).mkdir(exist_ok=True)
    (tmp_path / WORK / "train-00000.lease-1").touch()
    assert leases.claim() is None
    clock.advance(61)
    assert index_of(leases.claim()) == 0


@pytest.fixture
def taken_over(process, clock: Clock) -> tuple[Leases, Lease, Leases, Lease]:
    """A process that fell asleep over unit 0, and the one that took it over."""
    asleep, awake = process(timeout=3600), process(timeout=60)
    old = asleep.claim()
    old.check()
    awake.claim()  # unit 1, and a first look at the lease of unit 0
    clock.advance(61)
    new = awake.claim()
    assert (index_of(new), new.turn) == (0, 2)
    return asleep, old, awake, new


def test_owner_that_wakes_up_has_lost_its_lease(taken_over) -> None:
    asleep, old, _, new = taken_over
    with pytest.raises(LostLease):
        old.check()
    asleep.release(old)
    new.check()
    assert path_of(new).exists(), "what it gives back is no longer its own"


def test_number_used_again_by_a_third_process_is_not_the_first_one_s(taken_over, process) -> None:
    _, old, awake, new = taken_over
    awake.release(new)
    third = process().claim()
    assert third.claim.file == old.claim.file
    third.check()
    with pytest.raises(LostLease):
        old.check()


def writer(folder: Path, lease: Lease) -> UnitWriter:
    return UnitWriter(OutputFolder(folder), lease.unit.index, ["txt"], 10, lease.owner)


def test_owner_that_wakes_up_can_make_nothing_visible(tmp_path: Path, process, clock: Clock) -> None:
    asleep, awake = process(timeout=3600), process(timeout=60)
    old = writer(tmp_path, asleep.claim())
    old.write(SidecarRow("a"), {"txt": b"old"})
    awake.claim()
    clock.advance(61)
    new = writer(tmp_path, awake.claim())
    new.write(SidecarRow("a"), {"txt": b"new"})
    with pytest.raises(FileNotFoundError):
        old.commit({}, [], {}, {})
    assert not list(tmp_path.glob("train-*"))
    new.commit({}, [], {}, {})
    old.discard()
    new.discard()
    assert b"new" in (tmp_path / "train-00000.tar").read_bytes()


def test_all_waits_for_the_units_of_others(process, tmp_path: Path) -> None:
    first, second = process(), process()
    mine = first.claim()
    seen: list[int] = []
    none_to_be_had = threading.Event()

    def work() -> None:
        for lease in second.all(threading.Event()):
            if lease is None:
                none_to_be_had.set()
                continue
            finish(tmp_path, lease.unit.index)
            second.release(lease)
            seen.append(lease.unit.index)

    thread = threading.Thread(target=work)
    thread.start()
    assert none_to_be_had.wait(200) and seen == [1, 2] and thread.is_alive()
    first.release(mine)  # given up unfinished
    thread.join(timeout=200)
    assert seen == [1, 2, 0] and not thread.is_alive()


def test_full_disk_leaves_no_empty_lease(process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would hold the unit until it goes stale."""
    leases = process()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: fail())
        with pytest.raises(OSError, match="No space left"):
            leases.claim()
    assert not list((tmp_path / WORK).iterdir())
    assert index_of(process().claim()) == 0


NONSENSE = [
    *(b"", b"[1]", b"{}", b"null", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"9" * 5000),
    *(
        json.dumps({**this_process(), "token": "x", **wrong}).encode()
        for wrong in (
            {"pid": "x"}, {"pid": -1}, {"pid": 0}, {"pid": None}, {"pid": 2**70}, {"pid": 1.5}, {"pid": True},
            {"started": None}, {"started": "soon"}, {"started": float("nan")}, {"started": float("inf")}, {"started": 10**3000},
            {"token": 1}, {"host": ["a"]}, {"boot": None}, {"namespace": {}},
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("data", NONSENSE, ids=range(len(NONSENSE)))
def test_lease_of_nonsense_goes_stale_and_ends_no_run(
    process, tmp_path: Path, clock: Clock, data: bytes
) -> None:
    leases = process(timeout=60, units=UNITS[:1])
    (tmp_path / WORK).mkdir(exist_ok=True)
    (tmp_path / WORK / "train-00000.lease-1").write_bytes(data)
    assert leases.claim() is None
    clock.advance(61)
    lease = leases.claim()
    assert lease is not None and lease.turn == 2
    leases.release(lease)
    assert not list((tmp_path / WORK).iterdir())


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_lease_that_is_no_file_goes_stale_and_is_not_followed(
    process, tmp_path: Path, clock: Clock, kind: str
) -> None:
    leases, path = process(timeout=60, units=UNITS[:1]), tmp_path / WORK / "train-00000.lease-1"
    (tmp_path / WORK).mkdir(exist_ok=True)
    precious = tmp_path / "precious"
    precious.write_text("somebody's")
    os.utime(precious, (1e9, 1e9))
    {"folder": path.mkdir, "link": lambda: path.symlink_to(precious), "pipe": lambda: os.mkfifo(path)}[kind]()
    assert leases.claim() is None
    clock.advance(61)
    lease = leases.claim()
    assert lease is not None and lease.turn == 2
    leases.release(lease)
    assert not list((tmp_path / WORK).iterdir())
    assert precious.read_text() == "somebody's" and precious.stat().st_mtime == 1e9


def test_close_gives_back_and_sweeps_what_the_dead_left(process, tmp_path: Path) -> None:
    leases = process()
    leases.claim()
    finish(tmp_path, 1)
    for name in ("train-00001.lease-1", "tmp-0a"):
        (tmp_path / WORK / name).touch()
    (tmp_path / WORK / "train-00001.1-ab").mkdir()
    (tmp_path / WORK / "train-00001.1-ab" / "0.tar").touch()
    (tmp_path / WORK / "validation-00001.1-ab").mkdir()
    leases.close()
    assert [path.name for path in (tmp_path / WORK).iterdir()] == ["validation-00001.1-ab"], "not our split"
    (tmp_path / WORK / "validation-00001.1-ab").rmdir()
    process().close()
    assert not (tmp_path / WORK).exists()
