"""Where the time of one process goes: who waits for whom."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from builders.core.record import Record
from precompute.encode.devices import DeviceClock

TIMES = ("seconds", "reading", "decoding", "writing", "awaited", "idle", "device")


@dataclass
class Stats:
    """What this process did. Seconds of its main thread: waiting for the source (reading), for pixels (decoding), for the
    writer (writing) and for the device (awaited); idle while there was no unit to be had, as others work on the last ones
    or the disk is full. device: seconds in which the device had work.

    rows: done, rejected ones too. rows_read, units_read: of the source, ahead of them; a unit counts by the share that was read."""

    images: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0
    writing: float = 0.0
    awaited: float = 0.0
    idle: float = 0.0
    device: float = 0.0
    rows: int = 0
    rows_read: int = 0
    units_read: float = 0.0

    def __add__(self, other: "Stats") -> "Stats":
        return Stats(
            *(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    def spend(self, stage: str, seconds: float) -> None:
        """stage: one of TIMES."""
        setattr(self, stage, getattr(self, stage) + seconds)

    def last(self, seconds: float) -> None:
        """So long it has all taken by now."""
        self.seconds = seconds

    def finish(self, rows: int, images: int, clock: DeviceClock) -> None:
        """Count a batch that the device is done with."""
        self.rows += rows
        self.images += images
        self.device, self.awaited = clock.busy, clock.awaited

    def counted(self, rows: Iterable[Record]) -> Iterator[Record]:
        """The rows of a unit, counted as they are read."""
        units = self.units_read
        for row in rows:
            yield row
            self.rows_read += 1
            self.units_read = units + (row.share or 0.0)
        self.units_read = units + 1

    def in_time(self, seconds: float) -> "Stats":
        """Those of many processes as if they were one that is as fast as all: the same images and shares in this time."""
        share = seconds / max(self.seconds, 1e-9)
        return replace(self, **{name: share * getattr(self, name) for name in TIMES})

    @property
    def busy(self) -> float:
        """Seconds in which there was work."""
        return max(self.seconds - self.idle, 1e-9)

    @property
    def waited(self) -> float:
        """Share of the busy time in which the device had nothing to do."""
        return min(max(1 - self.device / self.busy, 0.0), 1.0)

    @property
    def bottleneck(self) -> str:
        """The stage that the others wait for; the host is what the main thread itself does between them."""
        seconds = {
            "reading": self.reading,
            "decoding": self.decoding,
            "writing": self.writing,
            "the device": self.awaited,
        }
        seconds["the host"] = self.busy - sum(seconds.values())
        return max(seconds, key=lambda stage: seconds[stage])
