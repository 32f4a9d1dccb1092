"""One piece of work: a fixed range of source rows, which is leased, written and counted as a whole."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` (None: to its end) of one source shard; `stop` is exclusive."""

    index: int
    shard: int
    start: int = 0
    stop: int | None = None
