"""`--max-disk`: units are taken up while the disk has room for them; then tars must first be pushed and deleted."""

import os
import re
import time
from collections import Counter

from precompute.errors import LostLease, UsageError
from precompute.input.units import Unit
from precompute.runtime.leases import LOOKING, TICK, Lease, Leases
from precompute.shards.missing_ok import may_be_gone

TAR = re.compile(r"(?P<unit>.+-\d{5,}?)(-\d{2,})?\.tar")
PATIENCE = 2.0  # seconds to wait for one's turn to look, which takes milliseconds


class Room:
    """Deals out the units of `leases` that the disk has room for. limit: GB of tars in the output folder, those in work
    included.

    What a killed process leaves of a unit takes no room, or there might never be any again. Whoever takes the unit up
    next clears it away; until then the disk holds so much more. largest: bytes of the largest unit finished so far, 0
    before the first.
    """

    def __init__(self, leases: Leases, limit: float, largest: int = 0) -> None:
        self._leases, self._limit, self._largest = leases, limit * 1e9, largest
        self._turns = Leases(leases.output, LOOKING, [Unit(0, 0)], leases.timeout)

    def claim(self) -> Lease | None:
        """`Leases.claim`, or None where there is no room. Raises UsageError where not even one unit fits.

        One process at a time looks and takes: two that look at once would see the same room.
        """
        turn = self._turn() if self.is_left() else None
        if turn is None:
            return None
        lease = None
        try:
            lease = self._leases.claim() if self.is_left() else None
            turn.check()
        except LostLease:  # held up in here, so that another has looked since
            if lease is not None:
                self._leases.release(lease)
            return None
        finally:
            self._turns.release(turn)
        return lease

    def is_left(self) -> bool:
        """For another unit. Raises UsageError where not even one fits."""
        # Before the tars: a unit finished in between is counted twice then, and not never.
        under_way = self._leases.under_way()
        tars = self._tars(under_way)
        self._largest = max([self._largest, *tars.values()])
        if self._largest > self._limit:
            needed = f"a unit takes {self._largest / 1e9:.3g} GB"
            raise UsageError(f"--max-disk {self._limit / 1e9:g}: {needed}; give more")
        if not self._largest:
            return not under_way  # the first unit, alone, tells how large they are
        return tars.total() + (len(under_way) + 1) * self._largest <= self._limit

    def close(self) -> None:
        self._turns.close()

    def _turn(self) -> Lease | None:
        until = time.monotonic() + PATIENCE
        while (turn := self._turns.claim()) is None and time.monotonic() < until:
            time.sleep(TICK / 10)
        return turn

    def _tars(self, under_way: set[str]) -> Counter[str]:
        """Bytes of tars by unit, of those finished or under way."""
        with os.scandir(self._leases.output) as entries:
            found = {entry.name: entry for entry in entries}
        units: Counter[str] = Counter()
        for name, entry in found.items():
            match = TAR.fullmatch(name)
            if match and (match["unit"] in under_way or f"{match['unit']}.json" in found):
                with may_be_gone():  # pushed and deleted just now
                    units[match["unit"]] += entry.stat().st_size
        return units
