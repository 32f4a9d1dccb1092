"""Units that a driver deals to this process by number: an engine calls `deal`, the pipeline asks `all`.

Each is claimed at the destination all the same. So a worker that its driver has given up, a second driver and plain
processes may be at one output, and each unit is made once.
"""

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future

from precompute.runtime.board import Free
from precompute.runtime.clock import TICK
from precompute.runtime.leases import Lease, Leases, UnitLease


class DealtLeases:
    """`UnitLeases` of what `deal` is called with, until `end`."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._dealt: queue.Queue[tuple[Free, Future[bool]] | None] = queue.Queue()
        self._open: dict[int, Future[bool]] = {}
        self._is_over = threading.Event()

    def deal(self, index: int, turn: int) -> bool:
        """Have a unit worked on: whether it is finished at the end, by whomever. Waits as long as that takes.

        turn: that of the claim. One more than that of a worker which has died takes the unit from it.
        """
        done: Future[bool] = Future()
        self._dealt.put((Free(self._leases.units[index], turn), done))
        while True:
            try:
                return done.result(TICK)
            except TimeoutError:
                if self._is_over.is_set() and not done.done():
                    return False

    def all(self, stop: threading.Event) -> Iterator[Lease | None]:
        try:
            while not stop.is_set():
                if self._dealt.empty():
                    yield None
                try:
                    dealt = self._dealt.get(timeout=TICK)
                except queue.Empty:
                    continue
                if dealt is None:
                    return
                free, done = dealt
                lease = self._leases.take(free)
                if lease is None:
                    done.set_result(self._leases.is_finished(free.unit))
                    continue
                self._open[free.unit.index] = done
                yield lease
        finally:
            self._dealt.put(None)  # for `deal` that comes too late

    def release(self, lease: UnitLease) -> None:
        self._leases.release(lease)
        self._open.pop(lease.unit.index).set_result(self._leases.is_finished(lease.unit))

    def end(self) -> None:
        """No more will be dealt: `all` ends after what has been."""
        self._dealt.put(None)

    def close(self) -> None:
        """Give up what is still held; whoever waits in `deal` is answered."""
        self._leases.close()
        self._is_over.set()
