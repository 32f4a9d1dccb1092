"""`--max-disk`: units are taken up while the disk has room for them; then tars must first be pushed and deleted."""

import contextlib
import re
from collections import Counter
from collections.abc import Iterator

from precompute.errors import UsageError
from precompute.runtime.claims import Lock
from precompute.shards.destination import Destination

TAR = re.compile(r"(?P<unit>.+-\d{5,}?)(-\d{2,})?\.tar")
PATIENCE = 2.0  # seconds to wait for one's turn to look, which takes milliseconds


class DiskBudget:
    """Lets units be claimed that the disk has room for. limit: GB of tars in the output folder, those in work included.

    What a killed process leaves of a unit takes no room, or there might never be any again. Whoever takes the unit up
    next clears it away; until then the disk holds so much more. largest: bytes of the largest unit finished so far, 0
    before the first.
    """

    def __init__(self, output: Destination, limit: float, timeout: float, largest: int = 0) -> None:
        self._output, self._limit, self._largest = output, limit * 1e9, largest
        self._looking = Lock(output, "room", timeout)

    @contextlib.contextmanager
    def passing(self) -> Iterator[bool]:
        """Whether there is room for one more. Raises UsageError where not even one unit fits, LostLease at its end where
        this process was held up.

        One process at a time looks and takes: two that look at once would see the same room.
        """
        turn = self._looking.acquire(PATIENCE) if self.is_left() else None
        if turn is None:
            yield False
            return
        try:
            yield self.is_left()
            turn.check()
        finally:
            self._looking.release(turn)

    def is_left(self) -> bool:
        """Say whether there is room for another unit. Raises UsageError where not even one fits."""
        # Before the tars: a unit finished in between is counted twice then, and not never.
        under_way = self._looking.claims.living()
        tars = self._tars(under_way)
        self._largest = max([self._largest, *tars.values()])
        if self._largest > self._limit:
            needed = f"a unit takes {self._largest / 1e9:.3g} GB"
            raise UsageError(f"--max-disk {self._limit / 1e9:g}: {needed}; give more")
        if not self._largest:
            return not under_way  # the first unit, alone, tells how large they are
        return tars.total() + (len(under_way) + 1) * self._largest <= self._limit

    def close(self) -> None:
        self._looking.close()

    def _tars(self, under_way: set[str]) -> Counter[str]:
        """Bytes of tars by unit, of those finished or under way."""
        found = self._output.files(lambda name: name.endswith((".tar", ".json")))
        units: Counter[str] = Counter()
        for name, entry in found.items():
            match = TAR.fullmatch(name)
            if match and (match["unit"] in under_way or f"{match['unit']}.json" in found):
                units[match["unit"]] += entry.size
        return units
