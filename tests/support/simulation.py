"""Many made-up processes in simulated time, all in one thread: greenlets that hand over where they wait, so that seeds repeat.

simulation = Simulation(seed=0)
simulation.spawn("worker", work)      # work() may call simulation.sleep
simulation.run()
"""

import heapq
import itertools
import json
import random
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Set
from typing import TypeVar

import numpy as np
from greenlet import getcurrent, greenlet

from precompute.cloud.finished_units import PASSED
from precompute.runtime.clock import Clock

T = TypeVar("T")
PAGE = 1000  # names in one reply of a store


class Died(BaseException):
    """Ends the threads of a process that was killed: nothing of it runs any more."""


class Task:
    """What would be a thread. machine: its process, which is killed and stalls with all its tasks."""

    def __init__(self, simulation: "Simulation", machine: "Machine", work: Callable[[], None]) -> None:
        self.machine, self.done = machine, False
        self._simulation, self._work = simulation, work
        self._greenlet = greenlet(self._run, simulation.hub)  # whoever ends hands over to it

    def resume(self) -> None:
        """Run until it waits, or has ended; called by `Simulation.run` alone."""
        self._greenlet.switch()

    def join(self) -> None:
        while not self.done:
            self._simulation.sleep(1.0)

    def _run(self) -> None:
        try:
            if not self.machine.dead:
                self._work()
        except Died:
            pass
        finally:
            self.done = True


class Machine(Clock):
    """A process with a clock of its own: `jump` moves it, as after a pause of a virtual machine.

    known: how many units it knows to be finished; first: the first that it does not.
    """

    def __init__(self, simulation: "Simulation") -> None:
        self.simulation, self.dead, self.until = simulation, False, 0.0
        self.known = self.first = 0
        self.ahead = simulation.rng.uniform(0, 1e6)

    def now(self) -> float:
        return self.simulation.now + self.ahead

    def wait(self, seconds: float, *events: threading.Event) -> None:
        if not any(event.is_set() for event in events):
            self.simulation.sleep(seconds)

    def start(self, work: Callable[[], None], name: str) -> Task:
        return self.simulation.spawn(self, work)

    def jump(self, seconds: float) -> None:
        self.ahead += seconds

    def kill(self) -> None:
        self.dead = True

    def stall(self, seconds: float) -> None:
        """Run nothing for a while, heartbeat included."""
        self.until = self.simulation.now + seconds


class Simulation:
    """The time of all machines, and whose turn it is."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.hub = getcurrent()
        self._order = itertools.count()
        self._due: list[tuple[float, int, Task]] = []
        self._current: Task | None = None

    def spawn(self, machine: Machine, work: Callable[[], None], after: float = 0.0) -> Task:
        task = Task(self, machine, work)
        self._schedule(task, after)
        return task

    def sleep(self, seconds: float) -> None:
        """Let others run meanwhile. Raises Died in a process that was killed."""
        task = self._current
        assert task is not None
        if not task.machine.dead:
            self._schedule(task, seconds)
            self.hub.switch()
        if task.machine.dead:
            raise Died

    def run(self, until: float = float("inf")) -> None:
        """Go on until nothing is left to do. Raises what a task raised first."""
        try:
            while self._due and self.now <= until:
                self._next()
            assert not self._due, f"work was left after {until} s"
        finally:
            for _, _, task in self._due:
                task.machine.dead = True
            while self._due:
                self._next()

    @property
    def machine(self) -> Machine:
        """The one whose turn it is."""
        assert self._current is not None
        return self._current.machine

    def _next(self) -> None:
        """Go on in time to whoever is due first, until it waits."""
        at, _, task = heapq.heappop(self._due)
        if not task.machine.dead and at < task.machine.until:
            heapq.heappush(self._due, (task.machine.until, next(self._order), task))
            return
        self.now, self._current = max(self.now, at), task
        task.resume()

    def _schedule(self, task: Task, seconds: float) -> None:
        heapq.heappush(self._due, (self.now + max(0.0, seconds), next(self._order), task))


class Finished(Set[int]):
    """Units that were finished at some moment: the first so many in the order of a log that others go on writing."""

    def __init__(self, order: "array[int]", length: int) -> None:
        self._order, self._length = order, length

    def __contains__(self, unit: object) -> bool:
        return self._order[unit] < self._length  # type: ignore[call-overload]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return (unit for unit, place in enumerate(self._order) if place < self._length)


class SimulatedStore:
    """Control and finished files of one split in memory. Every request takes its time, and is counted.

    slow: the share of requests that take up to a minute. kinds: requests by method; seconds: by second; looks: listings by second.
    """

    split = "train"

    def __init__(self, simulation: Simulation, units: int, latency: float = 0.05, slow: float = 0.0) -> None:
        self.marked: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.seconds: Counter[int] = Counter()
        self.looks: Counter[int] = Counter()
        self._simulation, self._latency, self._slow = simulation, latency, slow
        self._controls: dict[str, tuple[int, bytes]] = {}
        self._revoked: dict[str, int] = {}
        self._versions = itertools.count(1)
        self._order = array("q", [units]) * units  # as which of all it was finished
        self._end = 0  # behind the last of the finished ones

    # --- control files ---

    def create(self, name: str, data: bytes) -> bool:
        """Create a control file; each is of a process of another machine."""
        data = json.dumps({**json.loads(data), "host": "elsewhere"}).encode()
        return self._request("create", lambda: name not in self._controls and self._set(name, data))

    def touch(self, name: str) -> None:
        self._request("touch", lambda: name in self._controls and self._set(name, self._controls[name][1]))

    def version(self, name: str) -> Hashable:
        return self._request("version", lambda: self._controls.get(name, (None, b""))[0])

    def read(self, name: str) -> bytes:
        return self._request("read", lambda: self._controls.get(name, (0, b""))[1])

    def controls(self) -> list[str]:
        return list(self.versions())

    def versions(self) -> dict[str, Hashable]:
        pages = 1 + len(self._controls) // PAGE
        return self._request(
            "list", lambda: {name: about[0] for name, about in self._controls.items()}, pages
        )

    def remove(self, name: str) -> None:
        self._request("remove", lambda: self._controls.pop(name, None))

    # --- units ---

    def finished(self) -> Set[int]:
        """Listed as `FinishedUnits` does, by what this machine knows already."""
        machine = self._simulation.machine
        finished = self._request(
            "list", lambda: Finished(self._order, len(self.marked)), self._pages(machine.known)
        )
        machine.known = len(finished)
        return finished

    def _pages(self, known: int) -> int:
        """Requests of a listing from the first unit on that is not known, which passes over many that are."""
        machine, end = self._simulation.machine, self._end
        order = np.frombuffer(self._order, np.int64)[machine.first : end]
        unknown = np.append(np.flatnonzero(order >= known) + machine.first, end)
        machine.first = int(unknown[0])
        passed = np.flatnonzero(np.diff(unknown) > PASSED)
        begins, ends = unknown[[0, *(passed + 1)]], unknown[[*passed, -1]]
        return int((1 + 3 * (ends - begins) // PAGE).sum())

    def is_finished(self, unit: int) -> bool:
        return self._request("is_finished", lambda: unit in self.marked)

    def revoke(self, stem: str, turn: int) -> None:
        self._request("revoke", lambda: self._revoked.update({stem: turn}))

    def commit(self, stem: str, turn: int, unit: int) -> None:
        """What `publish` and `mark` come to. Raises FileNotFoundError where `revoke` was quicker."""

        def mark() -> None:
            if self._revoked.get(stem, 0) > turn:
                raise FileNotFoundError(stem)
            if unit not in self.marked:
                self._order[unit] = len(self.marked)
                self._end = max(self._end, unit + 1)
            self.marked[unit] += 1

        self._request("mark", mark)

    def close(self, sweep: bool = False) -> None:
        pass

    def _set(self, name: str, data: bytes) -> bool:
        self._controls[name] = next(self._versions), data
        return True

    def _request(self, kind: str, effect: Callable[[], T], pages: int = 1) -> T:
        """Takes its time, and happens at the end of it."""
        seconds = self._latency * self._simulation.rng.uniform(0.5, 1.5)
        if self._simulation.rng.random() < self._slow:
            seconds += self._simulation.rng.uniform(1, 60)
        self.kinds[kind] += pages
        for _ in range(pages):
            now = int(self._simulation.now)
            self.seconds[now] += 1
            self.looks[now] += kind == "list"
            self._simulation.sleep(seconds)
        return effect()
