"""What a process knows of all units: which are free to take, as of its last look at the destination.

A look lists every file there, so it is rare, and what it told is acted on until a claim shows it to be old. Processes
that start at one moment know the same and want the same: whoever loses a race picks at random among more units.
"""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from precompute.input.units import Unit
from precompute.runtime.claims import Claims, Turn
from precompute.runtime.clock import Clock
from precompute.shards.destination import stem_of

LOOKERS = 32  # of all processes, as many at most look at any one time, on average
WATCHERS = 128  # look within half a time-out though they know of free units
LOOKS = 8.0  # a second at most, in the long run, by all that wait
SHARE = 0.05  # of a waiting process's time may go into looks
KEPT = 512  # units that a process remembers as free
SPREAD = 16  # times as many units to pick from after each lost race, up to KEPT, or twice as many as others are at work on


@dataclass(frozen=True)
class Free:
    """A unit that nobody is at. turn: that of the next claim on it."""

    unit: Unit
    turn: int


class Board:
    """The units of a split that are free. finished: indices of those that are done.

    timeout: seconds after which an untouched lease is stale, which takes two looks to see.
    """

    def __init__(
        self, claims: Claims, units: list[Unit], timeout: float, clock: Clock, rng: random.Random
    ) -> None:
        self._claims, self._output, self._units = claims, claims.output, units
        self._timeout, self._clock, self._rng = timeout, clock, rng
        self._free: list[tuple[str, Unit]] = []
        self._turns: dict[str, Turn] = {}
        self._others = self._window = 1
        # Units that looks came to; the unfinished of them, by stem.
        self._passed, self._behind = 0, dict[str, Unit]()
        self._looked, self._took = -math.inf, 0.0
        self.finished: set[int] = set()

    @property
    def is_complete(self) -> bool:
        return len(self.finished) >= len(self._units)

    @property
    def interval(self) -> float:
        """Seconds between looks that keep SHARE, and LOOKERS and LOOKS were all others to look as often; no longer than a
        time-out, for one slow look is not for ever."""
        share = self._took * max(self._others / LOOKERS, 1 / SHARE)
        return min(self._timeout, max(share, self._others / LOOKS))

    def pick(self) -> Free | None:
        """Take a unit off the board, the first where races are not lost; None where none is known to be free."""
        if not self._free:
            return None
        stem, unit = self._free.pop(self._rng.randrange(min(self._window, len(self._free))))
        turn = self._turns.get(stem)
        return Free(unit, turn.number + 1 if turn else 1)

    def lost_race(self) -> None:
        self._window = min(SPREAD * self._window, max(KEPT, 2 * self._others))

    def won_race(self) -> None:
        self._window = max(1, self._window // 2)

    def is_old(self) -> bool:
        """Whether it is time for another look though free units are known: to see which leases stand still.

        Of any number of processes WATCHERS do in half a time-out: while there is other work, one of them is enough.
        """
        age = self._clock.now() - self._looked
        return not 0 <= age < max(self._timeout / 2 * max(1.0, self._others / WATCHERS), self.interval)

    def look(self) -> None:
        """See what is finished, and who is at what."""
        began = self._clock.now()
        self.finished, self._turns = self._output.finished(), self._claims.survey()
        mine = {claim.name for claim in self._claims.held}
        alive = [name for name, turn in self._turns.items() if turn.alive]
        # Those that wait for the last units hold none, and are there all the same.
        self._others = max(self._others, len(alive) - len(mine))
        busy = mine.union(alive)
        free = ((stem, unit) for stem, unit in self._unfinished() if stem not in busy)
        near = list(itertools.islice(free, max(KEPT, self._window)))
        chosen = near if len(near) <= KEPT else self._rng.sample(near, KEPT)
        self._free = sorted(chosen, key=lambda one: one[1].index)
        self._looked = self._clock.now()
        self._took = max(0.0, self._looked - began)

    def _unfinished(self) -> Iterator[tuple[str, Unit]]:
        """Units by stem, in their order. One that was seen finished is passed once, unless in the end its marker is not there."""
        if self._passed == len(self._units) and not self._behind and not self.is_complete:
            self._passed = 0
        is_finished, split = self.finished.__contains__, self._output.split
        for stem, unit in list(self._behind.items()):
            if is_finished(unit.index):
                del self._behind[stem]
            else:
                yield stem, unit
        for unit in itertools.islice(self._units, self._passed, None):
            self._passed += 1
            if not is_finished(unit.index):
                stem = stem_of(split, unit.index)
                self._behind[stem] = unit
                yield stem, unit
