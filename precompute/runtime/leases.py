"""Which units there are, and who works on which: processes share nothing but the destination of the shards.

A unit is leased by a claim on its name (precompute/runtime/claims.py). No process waits for another in a collective
operation; any may die, and any may join.
"""

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.board import Board, Free
from precompute.runtime.claims import BEATS, Claim, Claims, remove_dead_locks
from precompute.runtime.clock import SYSTEM, Clock
from precompute.shards.destination import Destination, stem_of

RACES = 8  # lost before a process looks again who is at what
# Seconds up to which a process waits after its first lost race, doubled by each further one; and at the most.
BACKOFF, MOST = 0.05, 0.4
# Seconds between attempts while no unit is to be had, where others are few; then so many times longer each.
SHORTEST, LONGER = 0.2, 1.5


class UnitLease(Protocol):
    """The right to work on one unit."""

    @property
    def unit(self) -> Unit: ...

    @property
    def owner(self) -> str:
        """Names the temporary files of this turn."""
        ...

    def check(self) -> None:
        """Raises LostLease if another process has taken the unit over: nothing may be made visible any more."""
        ...


class UnitLeases(Protocol):
    """Deals units out to this process: what the pipeline asks of whichever engine runs it."""

    def all(self, stop: threading.Event) -> Iterator[UnitLease | None]:
        """Leases until every unit is finished, by whomever: units of processes that die come round again. None while none
        is to be had, before each wait."""
        ...

    def release(self, lease: UnitLease) -> None:
        """Give a unit up, finished or not."""
        ...


class Gate(Protocol):
    """Is asked before a unit is claimed."""

    def passing(self) -> AbstractContextManager[bool]:
        """Held while the claim is made: False where none may be made now. Leaving it may raise LostLease, and the unit is
        given back; entering it may raise what ends the run."""
        ...


@dataclass(frozen=True)
class Lease:
    """A `UnitLease` by a claim."""

    unit: Unit
    claim: Claim

    @property
    def owner(self) -> str:
        return self.claim.owner

    @property
    def turn(self) -> int:
        return self.claim.turn

    def check(self) -> None:
        self.claim.check()


class Leases:
    """`UnitLeases` for all processes that share a destination. gates: each must let a claim pass; board: what is known.

    timeout: seconds after which an untouched lease is taken over. Owners on this machine that died are noticed at once
    where there are few of them, and of many as soon as their heartbeats are missing.
    """

    def __init__(
        self,
        output: Destination,
        units: list[Unit],
        timeout: float = 60.0,
        gates: Sequence[Gate] = (),
        clock: Clock = SYSTEM,
        rng: random.Random | None = None,
    ) -> None:
        self.units = units
        self._output, self._gates = output, gates
        self._clock, self._rng = clock, rng or random.SystemRandom()
        self._claims = Claims(output, timeout, clock, self._rng)
        self.board = Board(self._claims, units, timeout, clock, self._rng)
        self._released = threading.Event()

    def claim(self) -> Lease | None:
        """Lease a unit that is neither finished nor in good hands, the first where nobody else is after it; None if there
        is none now, or a gate is shut."""
        return self._past_gates(self._claim)

    def take(self, free: Free) -> Lease | None:
        """Lease this unit; None where another process was quicker, or a gate is shut."""
        return self._past_gates(lambda: self._take(free))

    def all(self, stop: threading.Event) -> Iterator[Lease | None]:
        pause = SHORTEST
        while not stop.is_set():
            self._released.clear()
            lease = self.claim()
            if lease is not None:
                yield lease
                pause = SHORTEST
            elif self._claims.held or not self.board.is_complete:
                yield None
                longest = max(self._claims.timeout / BEATS, self.board.interval)
                pause = min(longest, max(pause, self.board.interval / 2))
                self._clock.wait(pause * self._rng.uniform(0.5, 1.5), self._released, stop)
                pause *= LONGER
            else:
                return

    def finished(self) -> set[int]:
        """Indices of the units whose marker is there."""
        return self._output.finished()

    def is_finished(self, unit: Unit) -> bool:
        return self._output.is_finished(unit.index)

    def release(self, lease: UnitLease) -> None:
        assert isinstance(lease, Lease)
        self._claims.release(lease.claim)
        self._released.set()

    def close(self) -> None:
        """Give up what is still held, and leave nothing of the dead behind."""
        self._claims.close()
        remove_dead_locks(self._output)
        self._output.close(sweep=True)

    def _past_gates(self, claim: Callable[[], Lease | None]) -> Lease | None:
        lease = None
        try:
            with contextlib.ExitStack() as stack:
                if all(stack.enter_context(gate.passing()) for gate in self._gates):
                    lease = claim()
                else:
                    self.board.look()  # others may finish all meanwhile
        except LostLease:  # held up in a gate, so that another has passed it since
            if lease is not None:
                self.release(lease)
            return None
        return lease

    def _claim(self) -> Lease | None:
        """Claim a unit by what is known, and where that leads nowhere, once more after a look."""
        fresh = self.board.is_old()
        if fresh:
            self.board.look()
        lease = self._pick()
        if lease is None and not fresh:
            self.board.look()
            lease = self._pick()
        return lease

    def _pick(self) -> Lease | None:
        for race in range(RACES):
            free = self.board.pick()
            if free is None:
                return None
            lease = self._take(free)
            if lease is not None:
                self.board.won_race()
                return lease
            self.board.lost_race()
            self._clock.wait(self._rng.random() * min(MOST, BACKOFF * 2**race), self._released)
        return None

    def _take(self, free: Free) -> Lease | None:
        stem = stem_of(self._output.split, free.unit.index)
        claim = self._claims.take(stem, free.turn)
        if claim is None:
            return None
        if free.turn > 1:
            self._output.revoke(stem, free.turn)
        if self._output.is_finished(free.unit.index):  # between our look and our lease
            self._claims.release(claim)
            return None
        return Lease(free.unit, claim)
