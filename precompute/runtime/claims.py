"""Names that one process holds at a time, by control files at the destination and nothing else.

A process claims `train-00000` by creating `train-00000.lease-1`, and touches it while it works. A claim whose owner is
gone, or that has not been touched for a while, is taken over by creating `.lease-2`, and so on: each number is created
once, exclusively, so that two can never both win, and the highest number owns the name.
"""

import contextlib
import functools
import json
import math
import random
import re
import threading
import time
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from precompute.errors import LostLease
from precompute.runtime.clock import SYSTEM, TICK, Clock
from precompute.runtime.owner import is_dead, is_here, parse_owner, this_process
from precompute.shards.destination import Destination

BEATS = 6  # touches of a claim within the time-out
READS = 8  # owners that one look at all claims gets to know, at most
STILL = (
    2  # beats that a claim has missed by the time that its owner is read, where more than READS are unknown
)
CLAIM = re.compile(r"(?P<name>.+)\.lease-(?P<turn>\d{1,18})")
LOCK = ".lock"  # ends the names of locks, which are no unit's


@dataclass(frozen=True)
class Claim:
    """The right to a name. turn: how often it was claimed before this process did, and once more."""

    output: Destination
    name: str
    turn: int
    token: str

    @property
    def owner(self) -> str:
        """Names the temporary files of this turn."""
        return f"{self.turn}-{self.token}"

    @property
    def file(self) -> str:
        """Name of the control file."""
        return control_file(self.name, self.turn)

    def check(self) -> None:
        """Raises LostLease if another process has taken the name over."""
        # In this order: whoever takes over makes the next turn, and at its end removes ours before it.
        taken = self.output.version(control_file(self.name, self.turn + 1)) is not None
        if taken or parse_owner(self.output.read(self.file)).get("token") != self.token:
            raise LostLease(f"{self.name} was taken over by another process")

    def release(self) -> None:
        """Give the name up, unless it belongs to another by now."""
        with contextlib.suppress(LostLease):
            self.check()
            # From the oldest up: whoever held that one must never find it, and nothing newer.
            older = turns_of(self.output, self.name) if self.turn > 1 else []
            for turn in sorted({*older, self.turn}):
                self.output.remove(control_file(self.name, turn))


class Turn(NamedTuple):
    """The newest claim on a name, and whether its owner is at work, as far as can be told from here."""

    number: int
    alive: bool


class Claims:
    """Claims names for this process, and keeps what it holds alive from a thread.

    timeout: seconds after which an untouched claim is taken over. Owners on this machine that died are noticed at once
    where there are few of them, and of many as soon as their heartbeats are missing.
    """

    def __init__(
        self,
        output: Destination,
        timeout: float,
        clock: Clock = SYSTEM,
        rng: random.Random | None = None,
    ) -> None:
        self.output, self.timeout = output, timeout
        self._clock, self._rng = clock, rng or random.SystemRandom()
        self._token = f"{self._rng.getrandbits(64):016x}"
        self._owner = json.dumps({"token": self._token, **this_process()}).encode()
        self._held: dict[str, Claim] = {}
        self._seen: dict[str, tuple[Hashable, float]] = {}
        self._here: dict[str, dict[str, Any]] = {}  # owners that are processes of this machine
        self._elsewhere: set[str] = set()  # files of others, of which the heartbeat alone tells
        self._stop = threading.Event()
        self._heart = clock.start(self._beat, "lease-heartbeat")

    @property
    def held(self) -> list[Claim]:
        return list(self._held.values())

    def claim(self, name: str) -> Claim | None:
        """Claim a name that is nobody's, or no living process's; None where it is in good hands."""
        number, _ = newest_of(self.output.controls()).get(name, (0, ""))
        return None if number and self.is_alive(name, number) else self.take(name, number + 1)

    def take(self, name: str, turn: int) -> Claim | None:
        """Claim a name for its next turn; None where another process was quicker."""
        if not self.output.create(control_file(name, turn), self._owner):
            return None
        claim = self._held[name] = Claim(self.output, name, turn, self._token)
        return claim

    def is_alive(self, name: str, turn: int) -> bool:
        """Whether the owner of a turn is at work, as far as can be told from here."""
        file = control_file(name, turn)
        return self._is_alive(file, self.output.version(file))

    def survey(self) -> dict[str, Turn]:
        """The newest claims of all processes by name, from one listing. Owners not known yet are read where they are few; of
        many, those alone whose heartbeat is missing, for the others are alive whoever they are."""
        versions = self.output.versions()
        for known in (self._seen, self._here):
            for file in known.keys() - versions.keys():
                known.pop(file, None)
        self._elsewhere.intersection_update(versions)
        newest, turns, now = newest_of(versions), dict[str, Turn](), self._clock.now()
        asked, unknown, missing = list[str](), list[str](), list[str]()
        for name, (turn, file) in newest.items():
            age = self._age(file, versions[file], now)
            turns[name] = Turn(turn, age < self.timeout)
            if file in self._here:
                asked.append(name)
            elif file not in self._elsewhere:
                unknown.append(name)
                if age >= STILL * self.timeout / BEATS:
                    missing.append(name)
        for name in asked + (unknown if len(unknown) <= READS else missing[:READS]):
            turn, file = newest[name]
            if versions[file] is not None and self._has_died(file):
                turns[name] = Turn(turn, False)
        return turns

    def living(self) -> set[str]:
        """Names, locks aside, that living processes hold."""
        return {name for name, turn in self.survey().items() if turn.alive and not name.endswith(LOCK)}

    def release(self, claim: Claim) -> None:
        claim.release()
        self._held.pop(claim.name, None)

    def close(self) -> None:
        """Give up what is still held."""
        self._stop.set()
        self._heart.join()
        for claim in self.held:
            self.release(claim)

    def _is_alive(self, file: str, version: Hashable) -> bool:
        if version is None or (file not in self._elsewhere and self._has_died(file)):
            return False
        return self._age(file, version, self._clock.now()) < self.timeout

    def _age(self, file: str, version: Hashable, now: float) -> float:
        """Seconds since a claim was first seen as it is; endless where it is gone."""
        if version is None:
            return math.inf
        seen = self._seen.get(file)
        if seen is None or seen[0] != version:
            self._seen[file] = version, now
            return 0.0
        return now - seen[1]

    def _has_died(self, file: str) -> bool:
        """Whether its owner is a dead process of this machine, or this one, which has lost it since. Owners are read once,
        and again before they are buried: the number may be another's by now."""
        owner = self._here.get(file)
        if owner is not None and not self._is_nobody(file, owner):
            return False
        owner = parse_owner(self.output.read(file))
        if owner:  # else it may be half written yet
            self._here.pop(file, None)
            if owner["token"] == self._token or is_here(owner):
                self._here[file] = owner
            else:
                self._elsewhere.add(file)
        return self._is_nobody(file, owner)

    def _is_nobody(self, file: str, owner: dict[str, Any]) -> bool:
        if owner.get("token") == self._token:
            return all(claim.file != file for claim in self.held)
        return is_dead(owner)

    def _beat(self) -> None:
        # Not all processes that start at one moment at once.
        self._clock.wait(self._rng.random() * self.timeout / BEATS, self._stop)
        while not self._stop.is_set():
            for claim in self.held:
                with contextlib.suppress(OSError):
                    self.output.touch(claim.file)
            self._clock.wait(self.timeout / BEATS, self._stop)


class Lock:
    """One name for one process at a time: to push, or to look whether the disk has room."""

    def __init__(self, output: Destination, name: str, timeout: float) -> None:
        self._name, self.claims = f"{name}{LOCK}", Claims(output, timeout)

    def acquire(self, patience: float = 0.0) -> Claim | None:
        """None where another process has it, for as many seconds."""
        until = time.monotonic() + patience
        while (claim := self.claims.claim(self._name)) is None and time.monotonic() < until:
            time.sleep(TICK / 10)
        return claim

    def release(self, claim: Claim) -> None:
        self.claims.release(claim)

    def close(self) -> None:
        self.claims.close()
        self.claims.output.close()


def control_file(name: str, turn: int) -> str:
    return f"{name}.lease-{turn}"


def turns_of(output: Destination, name: str) -> list[int]:
    """The turns of a name whose control files are there."""
    found = (parse_control_file(file) for file in output.controls())
    return [claim[1] for claim in found if claim and claim[0] == name]


def newest_of(files: Iterable[str]) -> dict[str, tuple[int, str]]:
    """The turns that count, by name, and their files."""
    newest: dict[str, tuple[int, str]] = {}
    for file in files:
        if claim := parse_control_file(file):
            name, turn = claim
            if name not in newest or newest[name][0] < turn:
                newest[name] = turn, file
    return newest


@functools.lru_cache(1 << 16)
def parse_control_file(file: str) -> tuple[str, int] | None:
    """The name and the turn of a claim; None where the file is no claim's."""
    match = CLAIM.fullmatch(file)
    return (match["name"], int(match["turn"])) if match else None


def remove_dead_locks(output: Destination) -> None:
    """Those of processes of this machine that were killed while they held one."""
    for file in output.controls():
        match = CLAIM.fullmatch(file)
        if match and match["name"].endswith(LOCK) and is_dead(parse_owner(output.read(file))):
            output.remove(file)
