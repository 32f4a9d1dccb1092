"""Leases as a machine: processes claim, finish, give up, die, sleep and wake in any order, and no unit has two owners."""

import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.leases import Lease, Leases
from precompute.shards.output_folder import OutputFolder
from tests.support.waiting import Clock

UNITS = [Unit(index, index) for index in range(4)]
TIMEOUT = 3600.0  # beats are so rare that none comes by itself
who = st.integers(0, 2)


class Processes(RuleBasedStateMachine):
    """Three of them, all of this process in truth. A lease that nobody touches for an hour of the clock is stale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        self.patch.setattr(time, "monotonic", self.clock)
        self.folder = tempfile.TemporaryDirectory()
        self.output = Path(self.folder.name)
        self.processes = [self.process() for _ in range(3)]
        self.held: list[dict[int, Lease]] = [{}, {}, {}]
        self.finished: set[int] = set()

    def process(self) -> Leases:
        return Leases(OutputFolder(self.output, "train"), UNITS, TIMEOUT)

    def owners(self, unit: int) -> list[int]:
        """Who may make something of the unit visible."""
        found = []
        for number, held in enumerate(self.held):
            if unit in held:
                try:
                    held[unit].check()
                    found.append(number)
                except LostLease:
                    pass
        return found

    @rule(number=who)
    def claim(self, number: int) -> None:
        lease = self.processes[number].claim()
        if lease is not None:
            assert lease.unit.index not in self.finished and lease.unit.index not in self.held[number]
            self.held[number][lease.unit.index] = lease
            assert self.owners(lease.unit.index) == [number]

    @rule(number=who, gives_up=st.booleans())
    def end_one(self, number: int, gives_up: bool) -> None:
        """Finish the first unit that is in hand, if it still is one's own, and give it back."""
        for unit, lease in sorted(self.held[number].items())[:1]:
            if not gives_up and self.owners(unit) == [number]:
                (self.output / f"train-{unit:05d}.json").write_text("{}")
                self.finished.add(unit)
            self.processes[number].release(lease)
            del self.held[number][unit]

    @rule(number=who)
    def look(self, number: int) -> None:
        assert self.processes[number].finished() == self.finished

    @rule(hours=st.sampled_from([0.4, 1.1]))
    def time_passes(self, hours: float) -> None:
        self.clock.advance(hours * TIMEOUT)

    @invariant()
    def no_unit_has_two_owners(self) -> None:
        for unit in range(len(UNITS)):
            assert len(self.owners(unit)) <= 1

    def teardown(self) -> None:
        """Whatever has happened: what is not finished can be had by one more process, each unit once."""
        for process in self.processes:
            process.close()
        last = self.process()
        left = [lease.unit.index for lease in iter(last.claim, None)]
        last.close()
        self.patch.undo()
        self.folder.cleanup()
        assert left == [unit.index for unit in UNITS if unit.index not in self.finished]


TestProcesses = Processes.TestCase
TestProcesses.settings = settings(max_examples=15, stateful_step_count=15)
