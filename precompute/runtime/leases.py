"""Which units there are, and who works on which: processes share nothing but the output folder.

A process leases a unit by creating `OUT/.work/train-00000.lease-1`, and touches it while it works. A lease whose owner
is gone, or that has not been touched for a while, is taken over by creating `.lease-2`, and so on: each number is
created once, exclusively, so that two can never both win, and the highest number owns the unit. No process waits for
another in a collective operation; any may die, and any may join.
"""

import contextlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.owner import is_dead, read_owner, this_process
from precompute.shards.missing_ok import is_gone, may_be_gone
from precompute.shards.unit_writer import WORK, revoke, sweep

if TYPE_CHECKING:
    from precompute.runtime.disk_budget import Room

TICK = 0.1  # seconds between looks at whether to stop
LEASE = re.compile(r"(?P<stem>.+-\d{5,})\.lease-(?P<turn>\d+)")
PUSHING, LOOKING = "pushing", ".room"  # no splits: what one process at a time does is leased too
NO_UNITS = {f"{name}-00000" for name in (PUSHING, LOOKING)}


@dataclass
class Lease:
    """The right to work on one unit. `check` before making anything visible."""

    unit: Unit
    path: Path
    token: str
    turn: int

    @property
    def owner(self) -> str:
        """Names the temporary files of this turn."""
        return f"{self.turn}-{self.token}"

    def check(self) -> None:
        """Raises LostLease if another process has taken the unit over."""
        stem = self.path.name.rpartition(".lease-")[0]
        turns = [int(m["turn"]) for m in leases_in(self.path.parent) if m["stem"] == stem]
        if max(turns, default=0) != self.turn or read_owner(self.path).get("token") != self.token:
            raise LostLease(f"unit {self.unit.index} was taken over by another process")

    def release(self) -> None:
        """Give the unit up, finished or not, unless it belongs to another by now."""
        with contextlib.suppress(LostLease):
            self.check()
            for turn in range(self.turn, 0, -1):
                with may_be_gone():
                    self.path.with_name(self.path.name.rpartition("-")[0] + f"-{turn}").unlink()


@dataclass
class Leases:
    """Deals out the units of one split to all processes that share the folder.

    timeout: seconds after which an untouched lease is taken over. Owners on this machine that died are noticed at once.
    """

    output: Path
    split: str
    units: list[Unit]
    timeout: float = 60.0
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.room: Room | None = None  # on the disk, where there is a limit
        self._held: dict[int, Lease] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._work = self.output / WORK
        self._work.mkdir(parents=True, exist_ok=True)
        self._stop = threading.Event()
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
        self._heart.start()

    def claim(self) -> Lease | None:
        """Lease the first unit that is neither finished nor in good hands; None if there is none now."""
        done, newest = self.finished(), self._newest()
        for unit in self.units:
            if unit.index in done or unit.index in self._held:
                continue
            turn = newest.get(self._stem(unit), 0)
            if turn and self._alive(self._lease_path(unit, turn)):
                continue
            lease = self._take(unit, turn + 1)
            if lease is not None:
                return lease
        return None

    def all(self, stop: threading.Event) -> Iterator[Lease | None]:
        """Leases until every unit is finished, by whomever: units of processes that die come round again. None while none
        is to be had, before each wait."""
        pause = 0.2
        while not stop.is_set():
            self._released.clear()
            lease = self.room.claim() if self.room else self.claim()
            if lease is not None:
                yield lease
                pause = 0.2
            elif self._held or len(self.finished()) < len(self.units):
                yield None
                self._wait(stop, pause)
                pause = min(2.0, pause * 1.2)
            else:
                return

    def finished(self) -> set[int]:
        """Indices of the units whose marker is there."""
        pattern = re.compile(re.escape(self.split) + r"-(\d{5,})\.json")
        return {int(m[1]) for name in os.listdir(self.output) if (m := pattern.fullmatch(name))}

    def under_way(self) -> set[str]:
        """Stems of the units, of whichever split, that living processes are at."""
        newest = self._newest().items()
        return {stem for stem, turn in newest if self._alive(self._work / f"{stem}.lease-{turn}")} - NO_UNITS

    def release(self, lease: Lease) -> None:
        lease.release()
        self._held.pop(lease.unit.index, None)
        self._released.set()

    def close(self) -> None:
        """Give up what is still held, and leave no empty folder behind."""
        self._stop.set()
        self._heart.join()
        for lease in list(self._held.values()):
            self.release(lease)
        if self.room:
            self.room.close()
        sweep(self.output, {f"{self.split}-{index:05d}" for index in self.finished()})
        for match in leases_in(self._work):
            if match["stem"] in NO_UNITS and is_dead(read_owner(self._work / match[0])):
                with may_be_gone():
                    (self._work / match[0]).unlink()
        with contextlib.suppress(OSError):
            self._work.rmdir()

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        """Until the time is over, a unit of ours is given back, or `stop` is set."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (stop.is_set() or self._released.wait(TICK)):
            pass

    def _newest(self) -> dict[str, int]:
        """The turns that count, by the stems of their units."""
        newest: dict[str, int] = {}
        for match in leases_in(self._work):
            newest[match["stem"]] = max(newest.get(match["stem"], 0), int(match["turn"]))
        return newest

    def _stem(self, unit: Unit) -> str:
        return f"{self.split}-{unit.index:05d}"

    def _lease_path(self, unit: Unit, turn: int) -> Path:
        return self._work / f"{self._stem(unit)}.lease-{turn}"

    def _take(self, unit: Unit, turn: int) -> Lease | None:
        path = self._lease_path(unit, turn)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        except OSError as error:
            if not is_gone(error):
                raise
            # Another process closed, and removed the empty folder.
            self._work.mkdir(parents=True, exist_ok=True)
            return None
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"token": self.token, **this_process()}, file)
        except OSError:  # a full disk: an empty lease would hold the unit until it goes stale
            with may_be_gone():
                path.unlink()
            raise
        revoke(self.output, self._stem(unit), turn)
        lease = Lease(unit, path, self.token, turn)
        if unit.index in self.finished():  # finished between our look and our lease
            lease.release()
            return None
        self._held[unit.index] = lease
        return lease

    def _alive(self, path: Path) -> bool:
        try:
            touched = path.stat().st_mtime_ns
        except OSError as error:
            if not is_gone(error):
                raise
            return False
        before, since = self._seen.get(path.name, (0, 0.0))
        if before != touched:
            self._seen[path.name] = (touched, time.monotonic())
            return not is_dead(read_owner(path))
        return time.monotonic() - since < self.timeout and not is_dead(read_owner(path))

    def _beat(self) -> None:
        while not self._stop.wait(self.timeout / 6):
            for lease in list(self._held.values()):
                with contextlib.suppress(OSError):
                    os.utime(lease.path)


def leases_in(work: Path) -> list[re.Match[str]]:
    """The lease files in a folder, as matches of LEASE."""
    try:
        names = os.listdir(work)
    except OSError as error:
        if not is_gone(error):
            raise
        return []  # whoever finishes last removes the empty folder
    return [match for name in names if (match := LEASE.fullmatch(name))]
