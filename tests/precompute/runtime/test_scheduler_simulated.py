"""The scheduler of a thousand processes, in simulated time, on a store that is slow: each unit once, and no herd.

The suite plays a small one; LATENTMILL_SIMULATE=1000x100000 plays as many workers and units as it says.
"""

import os
import random
import threading
from collections import deque

import pytest

from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.leases import Lease, Leases
from precompute.shards.destination import stem_of
from tests.support.simulation import Machine, SimulatedStore, Simulation

LATENCY = 0.05
SIZES = [
    tuple(map(int, size.split("x"))) for size in os.environ.get("LATENTMILL_SIMULATE", "50x600").split(",")
]

if "LATENTMILL_SIMULATE" in os.environ:
    pytestmark = pytest.mark.timeout(0)


class Workers:
    """So many workers at so many units, each a process that holds two leases at a time, as the pipeline does."""

    def __init__(self, workers: int, units: int, seed: int, unit_seconds: float, slow: float = 0.0) -> None:
        self.simulation = Simulation(seed)
        self.rng = random.Random(seed)
        self.store = SimulatedStore(self.simulation, units, LATENCY, slow)
        self.units = [Unit(index, index) for index in range(units)]
        self.workers, self.unit_seconds = workers, unit_seconds
        self.lost = 0
        self.ended: list[Machine] = []
        self.machines: list[Machine] = []
        for _ in range(workers):
            self.join()

    def join(self, after: float = 0.0) -> None:
        machine = Machine(self.simulation)
        self.machines.append(machine)
        self.simulation.spawn(machine, lambda: self.work(machine), after)

    def work(self, machine: Machine) -> None:
        leases = Leases(self.store, self.units, clock=machine, rng=random.Random(self.rng.random()))
        held: deque[Lease] = deque()
        for lease in leases.all(threading.Event()):
            if lease is not None:
                held.append(lease)
            if held and (lease is None or len(held) == 2):
                self.finish(leases, held.popleft())
        assert not held
        leases.close()
        self.ended.append(machine)

    def finish(self, leases: Leases, lease: Lease) -> None:
        """Finish a unit as `OpenUnit` does: a lease is held against others at the beginning and right before the commit."""
        try:
            lease.check()
            self.simulation.sleep(self.unit_seconds * self.rng.uniform(0.5, 1.5))
            lease.check()
            self.commit(lease)
        except LostLease:
            self.lost += 1
        leases.release(lease)

    def commit(self, lease: Lease) -> None:
        try:
            self.store.commit(stem_of("train", lease.unit.index), lease.turn, lease.unit.index)
        except FileNotFoundError:
            lease.check()
            raise

    def trouble(self) -> None:
        """Kill, freeze or put forward the clock of one after another, until all units are finished."""
        while left := len(self.units) - len(self.store.marked):
            at_work = min(self.workers, left)
            self.simulation.sleep(self.rng.expovariate(1.0) * 20 * self.unit_seconds / at_work)
            machine = self.rng.choice(self.machines)
            what = self.rng.choice(("kill", "stall", "jump"))
            if what == "kill" and not machine.dead:
                machine.kill()
                self.join(after=self.rng.uniform(0, 120))
            elif what == "stall":
                machine.stall(self.rng.uniform(1, 300))
            else:
                machine.jump(self.rng.uniform(1, 3600))

    def run(self) -> None:
        self.simulation.run(until=1e7)
        assert self.store.marked == {unit.index: 1 for unit in self.units}, "each unit once"
        # A machine may die once its work is through.
        assert all(machine.dead or machine in self.ended for machine in self.machines), (
            "all came to their end"
        )


@pytest.mark.parametrize(("workers", "units"), SIZES)
def test_deaths_stalls_clock_steps_and_slow_stores(workers: int, units: int) -> None:
    """Random ones, about one for twenty units of work."""
    work = Workers(workers, units, seed=workers, unit_seconds=60.0, slow=0.001)
    work.simulation.spawn(Machine(work.simulation), work.trouble, after=30.0)
    work.run()
    assert work.lost > 0 and any(machine.dead for machine in work.machines)
    # A thousand that have ten units each ask as much again in the end, while the last of them wait for stragglers.
    assert work.store.kinds.total() < (40 if workers <= 100 else 70) * units, work.store.kinds


def test_requests_grow_with_the_work_and_not_with_the_workers() -> None:
    """LATENTMILL_SIMULATE's largest number of workers, ten units for each, and a tenth and a hundredth of them."""
    most = max(workers for workers, _ in SIZES)
    for workers in (most // 100, most // 10, most):
        if workers < 2:
            continue
        work = Workers(workers, 10 * workers, seed=workers, unit_seconds=60.0)
        work.run()
        kinds, units = work.store.kinds, len(work.units)
        assert kinds.total() < (30 if workers <= 100 else 60) * units, (workers, kinds)
        if workers <= 100:
            assert kinds["create"] < 3 * units and kinds["list"] < 6 * units, (workers, kinds)
        assert kinds["read"] < 6 * units, "owners of living processes are not read by all others"
        # Once all have found work, and until the first finds none: of each second, for each worker.
        steady = [work.store.seconds[second] for second in range(90, 450)]
        assert sum(steady) / len(steady) < 0.8 * workers and max(steady) < 5 * workers, (workers, steady)


def test_no_herd_at_the_start_or_at_the_end() -> None:
    """All start at one moment, and three of four find no unit to be had in the end."""
    work = Workers(100, 125, seed=1, unit_seconds=30.0)
    work.run()
    start, *others = (work.store.seconds[second] for second in range(int(work.simulation.now) + 1))
    assert start < 15 * 100, "a chain of requests of one after another"
    assert max(others) < 3 * 100
    assert max(work.store.looks.values()) <= 2 * 100
    assert work.store.kinds.total() < 50 * 125, work.store.kinds
