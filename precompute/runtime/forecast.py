"""How many images there will be, how many are done, and how long the rest takes: by rows that are known, or by what was read so far."""

from collections.abc import Callable
from dataclasses import dataclass

from precompute.runtime.stats import Stats


@dataclass(frozen=True)
class Outlook:
    """images, of all processes, rejected ones too; total: of all units, None where nothing tells; is_exact: whether it is known
    and not estimated; rate: images/s of all processes; seconds: until the end, None where nothing tells."""

    images: int
    total: int | None
    is_exact: bool
    rate: float
    seconds: float | None


class Forecast:
    """Looks ahead from what this process did and which units are finished.

    units: how many there are; rows: of all of them, None where that is not known. before: of the units finished before, how many
    they are and how many rows they have. peers: processes that began with this one; until another unit than ours is finished, they
    are taken to be as fast as this one. clock: seconds.
    """

    def __init__(
        self, units: int, rows: int | None, before: tuple[int, int], peers: int, clock: Callable[[], float]
    ) -> None:
        self._units, self._rows, (self._units_before, self._rows_before) = units, rows, before
        self._peers, self._clock = peers, clock
        self._began: tuple[float, int] | None = None

    def look(self, stats: Stats, finished: int) -> Outlook:
        """stats: of this process; finished: units, of all."""
        total, per_unit = self._total(stats)
        theirs = max(0, finished - self._units_before - int(stats.units_read))
        images = self._rows_before + stats.rows + round(theirs * per_unit)
        now = self._clock()
        # The first look comes after the first batch, so that what models need to warm up is in no rate.
        self._began = self._began or (now, images)
        since, gained = now - self._began[0], images - self._began[1]
        rate = (gained / since if gained and since else stats.rows / stats.busy) * (
            1 if theirs else self._peers
        )
        left = None if total is None or not rate else max(0, total - images) / rate
        return Outlook(
            images,
            None if total is None else max(round(total), images),
            self._rows is not None,
            rate,
            left,
        )

    def _total(self, stats: Stats) -> tuple[float | None, float]:
        """Rows of all units, and of one on average."""
        if self._rows is not None:
            return self._rows, self._rows / max(self._units, 1)
        seen = self._units_before + stats.units_read
        if not seen:
            return None, 0.0
        per_unit = (self._rows_before + stats.rows_read) / seen
        return per_unit * self._units, per_unit
