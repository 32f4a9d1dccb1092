"""`--max-disk`: whether the disk has room for another unit, or its tars must first be pushed and deleted."""

import contextlib
import re
from collections import Counter
from pathlib import Path

from precompute.errors import UsageError
from precompute.plan import leases_in
from precompute.shards import WORK

TAR = re.compile(r"(?P<unit>.+-\d{5,}?)(-\d{2,})?\.tar")


class Room:
    """Whether the disk has room for another unit. limit: GB of tars in the output folder, those in work included.

    largest: bytes of the largest unit finished so far, 0 before the first.
    """

    def __init__(self, output: Path, limit: float, largest: int = 0) -> None:
        self._output, self._limit, self._largest = output, limit * 1e9, largest

    def __call__(self) -> bool:
        """Raises UsageError where not even one unit fits."""
        units: Counter[str] = Counter()
        for path in self._output.glob("*.tar"):
            if match := TAR.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # pushed and deleted just now
                    units[match["unit"]] += path.stat().st_size
        self._largest = max([self._largest, *units.values()])
        if self._largest > self._limit:
            needed = f"a unit takes {self._largest / 1e9:.3g} GB"
            raise UsageError(f"--max-disk {self._limit / 1e9:g}: {needed}; give more")
        at_work = {lease["stem"] for lease in leases_in(self._output / WORK)} - {"pushing-00000", *units}
        if not self._largest:
            return not at_work  # the first unit, alone, tells how large they are
        return units.total() + (len(at_work) + 1) * self._largest <= self._limit
