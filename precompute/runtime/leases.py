"""Which units there are, and who works on which: processes share nothing but the destination of the shards.

A unit is leased by a claim on its name (precompute/runtime/claims.py). No process waits for another in a collective
operation; any may die, and any may join.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.claims import TICK, Claim, Claims, newest_turns, remove_dead_locks
from precompute.shards.destination import Destination, stem_of


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
    """`UnitLeases` for all processes that share a destination. gates: each must let a claim pass.

    timeout: seconds after which an untouched lease is taken over. Owners on this machine that died are noticed at once.
    """

    def __init__(
        self, output: Destination, units: list[Unit], timeout: float = 60.0, gates: Sequence[Gate] = ()
    ) -> None:
        self.units = units
        self._output, self._gates = output, gates
        self._claims = Claims(output, timeout)
        self._released = threading.Event()

    def claim(self) -> Lease | None:
        """Lease the first unit that is neither finished nor in good hands; None if there is none now, or a gate is shut."""
        lease = None
        try:
            with contextlib.ExitStack() as stack:
                if all(stack.enter_context(gate.passing()) for gate in self._gates):
                    lease = self._claim()
        except LostLease:  # held up in a gate, so that another has passed it since
            if lease is not None:
                self.release(lease)
            return None
        return lease

    def all(self, stop: threading.Event) -> Iterator[Lease | None]:
        pause = 0.2
        while not stop.is_set():
            self._released.clear()
            lease = self.claim()
            if lease is not None:
                yield lease
                pause = 0.2
            elif self._claims.held or len(self.finished()) < len(self.units):
                yield None
                self._wait(stop, pause)
                pause = min(2.0, pause * 1.2)
            else:
                return

    def finished(self) -> set[int]:
        """Indices of the units whose marker is there."""
        return self._output.finished()

    def release(self, lease: UnitLease) -> None:
        assert isinstance(lease, Lease)
        self._claims.release(lease.claim)
        self._released.set()

    def close(self) -> None:
        """Give up what is still held, and leave nothing of the dead behind."""
        self._claims.close()
        remove_dead_locks(self._output)
        self._output.close(sweep=True)

    def _claim(self) -> Lease | None:
        done, newest = self.finished(), newest_turns(self._output)
        held = {claim.name for claim in self._claims.held}
        for unit in self.units:
            stem = stem_of(self._output.split, unit.index)
            if unit.index in done or stem in held:
                continue
            turn = newest.get(stem, 0)
            if turn and self._claims.is_alive(stem, turn):
                continue
            lease = self._take(unit, turn + 1)
            if lease is not None:
                return lease
        return None

    def _take(self, unit: Unit, turn: int) -> Lease | None:
        stem = stem_of(self._output.split, unit.index)
        claim = self._claims.take(stem, turn)
        if claim is None:
            return None
        self._output.revoke(stem, turn)
        if self._output.is_finished(unit.index):  # between our look and our lease
            self._claims.release(claim)
            return None
        return Lease(unit, claim)

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        """Until the time is over, a unit of ours is given back, or `stop` is set."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (stop.is_set() or self._released.wait(TICK)):
            pass
