"""The Ray actors of a run as their driver knows them: hired as there is room, asked for things, and lost.

Ray's own retries are off: they are used up within seconds while a node is away, and then end the job.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from loader.format import FormatError
from precompute.config import Config
from precompute.errors import PrecomputeError, UsageError
from precompute.runtime.board import Free
from precompute.runtime.ray_cluster import num_gpus
from precompute.runtime.ray_worker import About, Worker
from precompute.runtime.stats import Stats

ROUND = 0.5  # seconds that the driver waits for an answer before it looks around
LOOK = 2.0  # seconds between looks at the cluster's nodes
PATIENCE = 120.0  # seconds to wait for room for the first worker
FAREWELL = 30.0  # seconds that workers have to give back what they hold
DEATHS = 5  # of workers before any of them has opened its models
CALLS = 16  # of one worker at a time: `work`, `deal` for each of its units, and what is short

logger = logging.getLogger("precompute")


@dataclass(eq=False)
class Hand:
    """A worker. node: where it runs; is_open: units can be dealt to it; dealt: those that it has, the oldest first."""

    actor: Any
    node: str = ""
    is_open: bool = False
    dealt: list[Free] = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    def settle(self, node: str) -> None:
        """Begin there."""
        self.node = node

    def open(self) -> None:
        """Have opened its session."""
        self.is_open = True

    def report(self, stats: Stats) -> None:
        """Say what it has done so far."""
        self.stats = stats


Answer = Callable[[Hand, Any], None]


class Crew:
    """Workers, one a GPU or --ray-workers on CPUs. on_loss: called with each that is lost, and why."""

    def __init__(
        self, config: Config, on_loss: Callable[[Hand, str], None], worker: type[Worker] = Worker
    ) -> None:
        self.hands: list[Hand] = []
        self.about: About | None = None
        self._config, self._on_loss = config, on_loss
        self._asked: dict[Any, tuple[Hand, Answer]] = {}
        self._due, self._deaths, self._past = 0.0, 0, Stats()
        resources = {"num_cpus": 1, "num_gpus": 0} if config.ray_workers else {"num_cpus": 0, "num_gpus": 1}
        self._hire = ray.remote(worker).options(
            **resources, max_restarts=0, max_task_retries=0, max_concurrency=CALLS
        )

    def open(self) -> About:
        """Wait until the first worker has opened its session; others may follow. Raises UsageError where the cluster has no
        room for one, and what `Session.open` raises."""
        if not self._wanted():
            raise UsageError(
                "--engine ray: the cluster has no GPU; --ray-workers N runs N workers on its CPUs instead"
            )
        until = time.monotonic() + PATIENCE
        while self.about is None:
            self.wait()
            if time.monotonic() > until and not any(hand.node for hand in self.hands):
                what = "CPU" if self._config.ray_workers else "GPU"
                raise UsageError(
                    f"--engine ray: in {PATIENCE:g} s no {what} of the cluster was free for a worker; "
                    "`ray status` tells who has them"
                )
        return self.about

    def ask(self, hand: Hand, answer: Answer, method: str, *arguments: Any) -> None:
        """Call a method of a worker; `answer` is called with what it returns, out of `wait`."""
        self._asked[getattr(hand.actor, method).remote(*arguments)] = hand, answer

    def wait(self) -> None:
        """Hire where there is room, and take the answers that are there; at most ROUND. Raises what a worker raised."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + LOOK
            for _ in range(self._wanted() - len(self.hands)):
                hand = Hand(self._hire.remote(self._config, os.getcwd()))
                self.hands.append(hand)
                self.ask(hand, self._started, "start")
        if not self._asked:
            time.sleep(ROUND)
            return
        ready, _ = ray.wait(list(self._asked), timeout=ROUND)
        if ready:
            ready, _ = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
        for reference in ready:
            if reference in self._asked:  # else of a worker that was lost meanwhile
                hand, answer = self._asked.pop(reference)
                try:
                    value = ray.get(reference)
                except RayTaskError as error:
                    raise _cause_of(hand, error) from error
                except RayError as error:
                    self._lose(hand, error)
                else:
                    answer(hand, value)

    def dismiss(self, method: str) -> None:
        """Call `end` or `stop` of all, and wait for them to give back what they hold, but not for long."""
        working = {ref: hand for ref, (hand, answer) in self._asked.items() if answer == self._ended}
        with contextlib.suppress(RayError):
            for hand in working.values():
                getattr(hand.actor, method).remote()
            ready = ray.wait(list(working), num_returns=len(working), timeout=FAREWELL)[0] if working else []
            for reference in ready:
                working[reference].report(ray.get(reference))
        for hand in self.hands:
            self._forget(hand)

    def stats(self) -> Stats:
        """What all did, those that were lost or dismissed included."""
        return sum((hand.stats for hand in self.hands), self._past)

    def _forget(self, hand: Hand) -> None:
        self.hands = [other for other in self.hands if other is not hand]
        self._asked = {ref: asked for ref, asked in self._asked.items() if asked[0] is not hand}
        self._past += hand.stats
        with contextlib.suppress(RayError):
            ray.kill(hand.actor)  # it may only be out of reach

    def _wanted(self) -> int:
        return self._config.ray_workers or num_gpus()

    def _started(self, hand: Hand, node: str) -> None:
        hand.settle(node)
        self.ask(hand, self._opened, "open")

    def _opened(self, hand: Hand, about: About) -> None:
        self.about = self.about or about
        if (about.units, about.recipe) != (self.about.units, self.about.recipe):
            raise PrecomputeError(
                f"--engine ray: the worker on {hand.node} reads another dataset or other models than the first; give all "
                "nodes the same files and packages"
            )
        hand.open()
        self.ask(hand, self._ended, "work")

    def _ended(self, hand: Hand, stats: Stats) -> None:
        raise PrecomputeError(f"--engine ray: the worker on {hand.node} ended before it was told to")

    def _lose(self, hand: Hand, error: RayError) -> None:
        self._forget(hand)
        reason = " ".join(str(error).split())[:300]
        self._deaths += self.about is None
        if self._deaths >= DEATHS:
            raise PrecomputeError(f"--engine ray: {DEATHS} workers died before one was ready: {reason}")
        self._on_loss(hand, reason)


def _cause_of(hand: Hand, error: RayTaskError) -> BaseException:
    """The error of ours that a worker has raised, as it was raised there; else Ray's own, with its traceback."""
    cause = error.cause
    return cause if isinstance(cause, (PrecomputeError, FormatError, OSError)) else error
