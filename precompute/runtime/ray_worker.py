"""What runs in each Ray actor: one session, models loaded once, and the pipeline of a plain process.

Only unit numbers travel. Its methods are called from several threads at once: `work` and `deal` wait meanwhile.
"""

import contextlib
import dataclasses
import os
import socket
import threading
from dataclasses import dataclass

from builders.archives import backoff
from loader.format import Field
from loader.recipe import Plan, Recipe
from precompute.cloud.place import open_output
from precompute.config import Config
from precompute.runtime.dealt import DealtLeases
from precompute.runtime.disk_budget import DiskBudget
from precompute.runtime.leases import Leases
from precompute.runtime.ray_cluster import threads_here
from precompute.runtime.session import Session
from precompute.runtime.stats import Stats
from precompute.shards.destination import Destination


@dataclass(frozen=True)
class About:
    """What a worker has opened, the same for all. reopened: units that --retry-rejected has taken up again;
    changed: what is to be said of edited sources; num_rows: of all units, where they are known before they are read."""

    units: int
    num_rows: int | None
    recipe: Recipe
    fields: list[Field]
    plan: Plan
    device: str
    reopened: int
    changed: str = ""


class Worker:
    """One actor. folder: where the command was started, for paths relative to it; taken where the node has it."""

    def __init__(self, config: Config, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        threads = config.num_threads or threads_here(gpu=config.ray_workers is None)
        self._config = dataclasses.replace(config, num_threads=threads)
        self._stats = Stats()
        self._is_stopped, self._enough = False, threading.Event()

    def start(self) -> str:
        """The machine, as soon as Ray has found room for this actor."""
        return socket.gethostname()

    def open(self) -> About:
        """Load records and models. Raises PrecomputeError."""
        with backoff.until(self._enough):
            return self._opened(self._config)

    def _opened(self, config: Config) -> About:
        destination = open_output(config.output, config.split, config.scratch, config.store_option)
        self._session = session = self.session(config, destination)
        self._open = contextlib.ExitStack()
        self._open.callback(destination.close)
        gates = []
        if config.max_disk:
            largest = session.keeper.largest_unit
            budget = DiskBudget(destination, config.max_disk, config.lease_timeout, largest)
            gates.append(self._open.enter_context(contextlib.closing(budget)))
        units = session.records.units
        self._leases = DealtLeases(Leases(destination, units, config.lease_timeout, gates))
        self._open.callback(self._leases.close)
        fields, plan = session.encoder.fields, session.records.plan
        return About(
            len(units),
            session.num_rows,
            session.recipe,
            fields,
            plan,
            str(session.device),
            session.reopened,
            session.changed,
        )

    def session(self, config: Config, destination: Destination) -> Session:
        return Session.open(config, destination)

    def work(self) -> Stats:
        """Work on what is dealt until `end` or `stop`, and say what was done. Raises what stopped the work before."""
        with backoff.until(self._enough), self._open, contextlib.suppress(_Dismissed):
            self._stats = self._session.work(self._leases, self._see)
        return self._stats

    def deal(self, index: int, turn: int) -> tuple[bool, Stats]:
        """Whether a unit is finished, once it has been worked on, and what this worker has done so far."""
        return self._leases.deal(index, turn), dataclasses.replace(self._stats)

    def end(self) -> None:
        """Deal no more."""
        self._leases.end()

    def stop(self) -> None:
        """Give up what is held, rather than finish it."""
        self._is_stopped = True
        self._leases.end()

    def _see(self, stats: Stats) -> None:
        self._stats = stats
        if self._is_stopped:
            raise _Dismissed


class _Dismissed(Exception):
    """Unwinds the pipeline."""
