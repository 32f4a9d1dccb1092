"""Names that one process holds at a time, by control files at the destination and nothing else.

A process claims `train-00000` by creating `train-00000.lease-1`, and touches it while it works. A claim whose owner is
gone, or that has not been touched for a while, is taken over by creating `.lease-2`, and so on: each number is created
once, exclusively, so that two can never both win, and the highest number owns the name.
"""

import contextlib
import json
import re
import secrets
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass

from precompute.errors import LostLease
from precompute.runtime.owner import is_dead, parse_owner, this_process
from precompute.shards.destination import Destination

TICK = 0.1  # seconds between looks at whether to stop
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
        turn = newest_turns(self.output).get(self.name, 0)
        if turn != self.turn or parse_owner(self.output.read(self.file)).get("token") != self.token:
            raise LostLease(f"{self.name} was taken over by another process")

    def release(self) -> None:
        """Give the name up, unless it belongs to another by now."""
        with contextlib.suppress(LostLease):
            self.check()
            # From the newest down: an older one alone would be nobody's, and taken over in vain.
            for turn in sorted(turns_of(self.output, self.name), reverse=True):
                self.output.remove(control_file(self.name, turn))


class Claims:
    """Claims names for this process, and keeps what it holds alive from a thread.

    timeout: seconds after which an untouched claim is taken over. Owners on this machine that died are noticed at once.
    """

    def __init__(self, output: Destination, timeout: float) -> None:
        self.output, self.timeout = output, timeout
        self._token = secrets.token_hex(8)
        self._held: dict[str, Claim] = {}
        self._seen: dict[str, tuple[Hashable, float]] = {}
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease-heartbeat", daemon=True)
        self._heart.start()

    @property
    def held(self) -> list[Claim]:
        return list(self._held.values())

    def claim(self, name: str) -> Claim | None:
        """Claim a name that is nobody's, or no living process's; None where it is in good hands."""
        turn = newest_turns(self.output).get(name, 0)
        return None if turn and self.is_alive(name, turn) else self.take(name, turn + 1)

    def take(self, name: str, turn: int) -> Claim | None:
        """Claim a name for its next turn; None where another process was quicker."""
        owner = json.dumps({"token": self._token, **this_process()})
        if not self.output.create(control_file(name, turn), owner.encode()):
            return None
        claim = self._held[name] = Claim(self.output, name, turn, self._token)
        return claim

    def is_alive(self, name: str, turn: int) -> bool:
        """Whether the owner of a turn is at work, as far as can be told from here."""
        file = control_file(name, turn)
        version = self.output.version(file)
        if version is None or is_dead(parse_owner(self.output.read(file))):
            return False
        before, since = self._seen.get(file, (None, 0.0))
        if before != version:
            self._seen[file] = version, time.monotonic()
            return True
        return time.monotonic() - since < self.timeout

    def living(self) -> set[str]:
        """Names, locks aside, that living processes hold."""
        turns = newest_turns(self.output).items()
        return {name for name, turn in turns if not name.endswith(LOCK) and self.is_alive(name, turn)}

    def release(self, claim: Claim) -> None:
        claim.release()
        self._held.pop(claim.name, None)

    def close(self) -> None:
        """Give up what is still held."""
        self._stop.set()
        self._heart.join()
        for claim in self.held:
            self.release(claim)

    def _beat(self) -> None:
        while not self._stop.wait(self.timeout / 6):
            for claim in self.held:
                with contextlib.suppress(OSError):
                    self.output.touch(claim.file)


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
    found = (CLAIM.fullmatch(file) for file in output.controls())
    return [int(match["turn"]) for match in found if match and match["name"] == name]


def newest_turns(output: Destination) -> dict[str, int]:
    """The turns that count, by name."""
    newest: dict[str, int] = {}
    for file in output.controls():
        if match := CLAIM.fullmatch(file):
            newest[match["name"]] = max(newest.get(match["name"], 0), int(match["turn"]))
    return newest


def remove_dead_locks(output: Destination) -> None:
    """Those of processes of this machine that were killed while they held one."""
    for file in output.controls():
        match = CLAIM.fullmatch(file)
        if match and match["name"].endswith(LOCK) and is_dead(parse_owner(output.read(file))):
            output.remove(file)
