"""Units that a driver deals by number are claimed at the destination all the same: each is one worker's."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.dealt import DealtLeases
from precompute.runtime.leases import Lease, Leases
from precompute.shards.output_folder import OutputFolder
from tests.support.waiting import wait_until

UNITS = [Unit(index, index) for index in range(3)]


class Worker:
    """The leases of one worker, pulled by a thread as the pipeline does, and the answers to what it was dealt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leases = DealtLeases(Leases(OutputFolder(folder), UNITS))
        self.held: dict[int, Lease] = {}
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(8)
        self.pulling = self.pool.submit(self.pull)

    def pull(self) -> None:
        for lease in self.leases.all(self.stop):
            if lease is not None:
                self.held[lease.unit.index] = lease

    def deal(self, index: int, turn: int = 1) -> Future[bool]:
        return self.pool.submit(self.leases.deal, index, turn)

    def give_back(self, index: int, finished: bool) -> None:
        wait_until(lambda: index in self.held)
        if finished:
            (self.folder / f"train-{index:05d}.json").write_text("{}")
        self.leases.release(self.held.pop(index))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator:
    made: list[Worker] = []

    def make() -> Worker:
        made.append(Worker(tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.stop.set()
        one.pulling.result()
        one.leases.close()
        one.pool.shutdown()


def test_answer_says_whether_the_unit_was_finished(worker) -> None:
    one = worker()
    first, second = one.deal(0), one.deal(1)
    one.give_back(1, finished=False)
    one.give_back(0, finished=True)
    assert first.result(200) and not second.result(200)
    assert one.deal(0).result(200), "it is finished already"
    one.leases.end()
    one.pulling.result(200)


def test_unit_in_other_hands_is_not_begun_and_a_lost_worker_s_is_taken_from_it(worker) -> None:
    lost, other = worker(), worker()
    lost.deal(2)
    wait_until(lambda: 2 in lost.held)
    assert not other.deal(2).result(200), "another driver's, or a plain process's"
    taken = other.deal(2, turn=2)
    wait_until(lambda: 2 in other.held)
    with pytest.raises(LostLease):
        lost.held[2].check()
    other.give_back(2, finished=True)
    assert taken.result(200)


def test_worker_that_closes_answers_what_it_was_dealt(worker) -> None:
    one = worker()
    begun, late = one.deal(0), one.deal(1)
    wait_until(lambda: len(one.held) == 2)
    one.stop.set()
    one.pulling.result(200)
    one.leases.close()
    assert not begun.result(200) and not late.result(200) and not one.deal(2).result(200)
    assert not list(one.folder.glob(".work/*")), "and gives back what it held"
