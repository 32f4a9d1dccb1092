"""One piece of work: a fixed range of source rows, which is leased, written and counted as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` (None: to its end) of one source shard; `stop` is exclusive."""

    index: int
    shard: int
    start: int = 0
    stop: int | None = None


def rows_of(units: Sequence[Unit]) -> int | None:
    """Rows of all units, where each has an end."""
    counts = [unit.stop - unit.start for unit in units if unit.stop is not None]
    return sum(counts) if len(counts) == len(units) else None
