"""Fetching remote shards before they are needed, and letting go of those that are not needed any more.

The order is known, so what comes next is no guess, at an epoch's end either: a planner looks `distance` batches ahead, renews
what it says to the cache about its files, and closes a shard when the last batch that it knows of is done with it.
"""

import logging
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from loader.format import FormatError
from loader.printable import printable
from loader.reader import BatchReader
from loader.stopping import Stopped

log = logging.getLogger("loader")

THREADS = 4
TICK = 1.0  # seconds between two renewals of a plan
RENEW = 0.1  # seconds, where it has changed
IDLE = 10.0  # seconds without a batch, after which a loader keeps nothing from others
Turn = tuple[int, npt.NDArray[np.int64]]


class Schedule:
    """The shards that the next batches need, in order. Threads share it under the lock of FetchAhead."""

    def __init__(self) -> None:
        self._batches: OrderedDict[tuple[int, int], list[int]] = OrderedDict()
        self._needs: Counter[int] = Counter()
        self._early: set[tuple[int, int]] = set()

    def add(self, batch: tuple[int, int], shards: list[int]) -> list[int]:
        """Those of the shards that no earlier batch needs."""
        if batch in self._early:
            self._early.discard(batch)
            return []
        self._batches[batch] = shards
        new = [shard for shard in shards if not self._needs[shard]]
        self._needs.update(shards)
        return new

    def remove(self, batch: tuple[int, int]) -> list[int]:
        """A batch is done: those of its shards that no other one needs."""
        shards = self._batches.pop(batch, None)
        if shards is None:  # done before it was planned
            self._early.add(batch)
            return []
        self._needs.subtract(shards)
        free = [shard for shard in shards if not self._needs[shard]]
        for shard in free:
            del self._needs[shard]
        return free

    def needs(self, shard: int) -> bool:
        return self._needs[shard] > 0

    def in_order(self) -> list[int]:
        """Each shard once, the one that is needed first before others."""
        return list(dict.fromkeys(shard for shards in list(self._batches.values()) for shard in shards))


class FetchAhead:
    """Threads that fetch the shards of the next `distance` batches. Several loaders share the work: each takes what no other has.

    processes: that read the same shards on this machine. The first batch goes before all shards (early.py).
    """

    def __init__(self, reader: BatchReader, turns: Iterator[Turn], distance: int, processes: int = 1) -> None:
        self._reader, self._turns, self._distance = reader, turns, distance
        self._stop, self._changed, self._one = threading.Event(), threading.Condition(), threading.Lock()
        self._plan, self._queue, self._failed = Schedule(), deque[int](), set[int]()
        self._begun = self._planned = 0
        self._done = deque[tuple[int, int]]()
        self._last = time.monotonic()
        reader.watch(self._finished)
        self._may_begin = reader.begin_stream(processes)
        jobs = [self._look_ahead, *[self._fetch] * THREADS]
        self._threads = [threading.Thread(target=job, name="loader-ahead", daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def advance(self) -> None:
        """A batch was begun."""
        with self._changed:
            self._begun += 1
            self._last = time.monotonic()
            self._changed.notify_all()

    def close(self) -> None:
        self._stop.set()
        self.advance()
        for thread in self._threads:
            thread.join(timeout=1)
        self._reader.let_go()

    def _finished(self, epoch: int, position: int) -> None:
        with self._changed:
            self._done.append((epoch, position))
            self._last = time.monotonic()
            self._changed.notify_all()

    @property
    def _idle(self) -> bool:
        return time.monotonic() - self._last > IDLE and not self._reader.in_progress

    # --- the planner

    def _look_ahead(self) -> None:
        renewed, rests, changed = 0.0, False, False
        while not self._stop.is_set():
            changed = self._extend() | self._retire() | changed
            if self._idle:
                if not rests:
                    self._reader.let_go()
                rests = True
            elif (now := time.monotonic()) > renewed + (RENEW if changed else TICK):
                rests, renewed, changed = False, now, False
                with self._changed:
                    soon = self._plan.in_order()
                self._reader.plan(soon)
            with self._changed:
                if not self._done and self._planned >= self._begun + self._distance:
                    self._changed.wait(TICK)

    def _extend(self) -> bool:
        """Plan as far as is looked ahead; whether there was something to plan."""
        before = self._planned
        while self._planned < self._begun + self._distance and not self._stop.is_set():
            epoch, positions = next(self._turns)
            shards = np.unique(self._reader.order.locate(epoch, positions).shard).tolist()
            with self._changed:
                self._planned += 1
                self._queue.extend(self._plan.add((epoch, int(positions[0])), shards))
                self._changed.notify_all()
        return self._planned > before

    def _retire(self) -> bool:
        """Let go of what the batches that are done needed alone; whether there were such batches."""
        some = bool(self._done)
        while self._done:
            with self._changed:
                free = self._plan.remove(self._done.popleft())
            for shard in free:
                self._failed.discard(shard)
                self._reader.release(shard)
        return some

    # --- those who fetch

    def _fetch(self) -> None:
        while (shard := self._next()) is not None:
            try:
                self._reader.prefetch(shard)
            except Stopped:
                return
            except (OSError, FormatError) as error:
                self._tell(shard, error)

    def _next(self) -> int | None:
        """The next shard that is needed and for which there is room; they get it in the order of need. None: the end."""
        while not self._stop.is_set():
            with self._one:
                while self._queue and (
                    self._queue[0] in self._failed or not self._plan.needs(self._queue[0])
                ):
                    self._queue.popleft()
                if self._queue and self._may_begin.is_set() and not self._idle:
                    try:
                        if self._reader.reserve(self._queue[0]):
                            return self._queue.popleft()
                    except (OSError, FormatError) as error:
                        self._tell(self._queue.popleft(), error)
            with self._changed:
                self._changed.wait(0.05 if self._queue else TICK)
        return None

    def _tell(self, shard: int, error: Exception) -> None:
        """It is dealt with when the shard is needed."""
        self._failed.add(shard)
        log.info("%s: %s", self._reader.name(shard), printable(error))
