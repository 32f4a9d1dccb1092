"""`--engine ray`: the process that starts the command deals units to Ray actors, and keeps what they made in view.

1. one actor a GPU, or --ray-workers on CPUs; each opens a session (precompute/runtime/ray_worker.py)
2. units go to them by number, a few each, so that one is read while the last is encoded
3. an actor that dies or cannot be reached is given up, and its units go to others, who take them from it
4. nodes that join get actors of their own (precompute/runtime/ray_crew.py)
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from precompute.config import Config
from precompute.errors import PrecomputeError
from precompute.input.units import Unit
from precompute.runtime.board import Free
from precompute.runtime.leases import SHORTEST, Leases
from precompute.runtime.ray_crew import DEATHS, Crew, Hand
from precompute.runtime.ray_worker import Worker
from precompute.runtime.stats import Stats
from precompute.shards.destination import Destination
from precompute.shards.manifest import ManifestKeeper

DEPTH = 3  # units that a worker has: one being written, one being read, and the next
LONGEST = 10.0  # seconds between looks at the destination, while others are at the last units

logger = logging.getLogger("precompute")


class RaySession:
    """A run as its driver holds it: what a `Session` is to a plain process, with the models elsewhere.

    device, units, num_rows, reopened, changed: as the first worker has them.
    """

    def __init__(self, config: Config, destination: Destination, worker: type[Worker] = Worker) -> None:
        """Wait for the first worker. Raises UsageError where the cluster has no room for one, and what `Session.open` does."""
        self.config, self.destination = config, destination
        self._crew = Crew(config, self._put_back, worker)
        self._back: list[Free] = []
        self._deaths: Counter[int] = Counter()
        self._dealt: set[int] = set()
        about = self._crew.open()
        self.device, self.reopened, self.changed = about.device, about.reopened, about.changed
        self.num_rows = about.num_rows
        self.units = [Unit(index, index) for index in range(about.units)]
        self.keeper = ManifestKeeper(destination, about.recipe, about.fields, about.plan)
        self.keeper.start()

    def work(
        self, leases: Leases, on_batch: Callable[[Stats], None], on_commit: Callable[[], object]
    ) -> Stats:
        """Have all units finished. leases: says which are free. Raises what stopped a worker, or the driver."""
        began, farewell = time.monotonic(), "stop"
        pause, due = SHORTEST, 0.0
        try:
            while not (leases.board.is_complete and not self._dealt):
                known = len(leases.board.finished)
                is_short = self._deal(leases)
                self._crew.wait()
                if len(leases.board.finished) > known:
                    pause, due = SHORTEST, 0.0
                    on_commit()
                if (is_short or leases.board.is_old()) and time.monotonic() >= due:
                    leases.board.look()
                    due, pause = time.monotonic() + pause, min(LONGEST, 1.2 * pause)
                on_batch(self._crew.stats().in_time(time.monotonic() - began))
            farewell = "end"
        finally:
            self._crew.dismiss(farewell)
        return self._crew.stats().in_time(time.monotonic() - began)

    def _deal(self, leases: Leases) -> bool:
        """Give every worker what it has room for, the first unit of each before the second of any; whether some got none."""
        hands = [hand for hand in self._crew.hands if hand.is_open]
        left = len(self.units) - len(leases.board.finished) - len(self._dealt)
        # Towards the end nobody hoards what another could begin with.
        for depth in range(1, 1 + (DEPTH if left > len(hands) else DEPTH - 1)):
            for hand in hands:
                if len(hand.dealt) >= depth:
                    continue
                free = self._next(leases)
                if free is None:
                    return True
                self._dealt.add(free.unit.index)
                hand.dealt.append(free)
                self._crew.ask(hand, partial(self._done, leases, free), "deal", free.unit.index, free.turn)
        return False

    def _next(self, leases: Leases) -> Free | None:
        if self._back:
            return self._back.pop(0)
        while (free := leases.board.pick()) is not None and free.unit.index in self._dealt:
            pass
        return free

    def _done(self, leases: Leases, free: Free, hand: Hand, answer: tuple[bool, Stats]) -> None:
        is_finished, stats = answer
        hand.report(stats)
        hand.dealt.remove(free)
        self._dealt.discard(free.unit.index)
        if is_finished:
            leases.board.finished.add(free.unit.index)
            self._deaths.pop(free.unit.index, None)

    def _put_back(self, hand: Hand, reason: str) -> None:
        """The next turn takes a unit from a worker that is lost, be it alive behind a cut cable."""
        logger.warning(
            "a worker%s was lost, %d units are put back: %s",
            hand.node and f" on {hand.node}",
            len(hand.dealt),
            reason,
        )
        self._back += [Free(free.unit, free.turn + 1) for free in hand.dealt]
        self._dealt -= {free.unit.index for free in hand.dealt}
        for free in hand.dealt[:1]:
            self._deaths[free.unit.index] += 1
            if self._deaths[free.unit.index] >= DEATHS:
                raise PrecomputeError(
                    f"--engine ray: {DEATHS} workers died at unit {free.unit.index}: {reason}"
                )
