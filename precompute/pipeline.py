"""decode -> device -> write, overlapped, one unit after another.

    1. reader thread     leases a unit, reads its rows, hands the images to the decode threads
    2. decode threads    image bytes -> uint8 pixels (precompute/pixels.py)
    3. main thread       gathers batches and keeps the device one batch ahead (precompute/encode.py)
    4. writer thread     arrays -> shards (precompute/shards.py), commits the unit, gives the lease back

Queues between them are bounded, so memory is too. Batches are cut from one unit's readable rows in source order: what
is in a batch, and so every value, depends on the unit alone. A fault in any thread stops all, and `run` raises it.
"""

import contextlib
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from builders import patience
from precompute.encode import Arrays, BatchEncoder, InFlight, Sample
from precompute.errors import LostLease
from precompute.gone import is_gone
from precompute.pixels import Picture, UnfitImage
from precompute.plan import Lease, Leases
from precompute.records import Record, Records
from precompute.shards import Members, Row, UnitWriter

logger = logging.getLogger("precompute")

TICK = 0.1  # seconds between looks at whether another thread has failed


@dataclass
class Stats:
    """What this process did. Seconds of its main thread: waiting for the source (reading), for pixels (decoding), for the
    writer (writing) and for the device (awaited); idle while there was no unit to be had, as others work on the last ones
    or the disk is full. device: seconds in which the device had work."""

    images: int = 0
    seconds: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0
    writing: float = 0.0
    awaited: float = 0.0
    idle: float = 0.0
    device: float = 0.0

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


@dataclass
class Item:
    """A row on its way: `picture` or `reject` once decoded, `arrays` or `reject` once encoded. Its file is let go of."""

    row: Row
    reject: str | None
    picture: Picture | None = None
    arrays: Arrays | None = None


@dataclass
class Batch:
    """Rows of one unit in source order, those to encode and the rejected ones between them; `last` ends the unit.

    group: the size of the pictures, as they share a shard only with their like.
    """

    lease: Lease
    group: Hashable
    items: list[Item] = field(default_factory=list)
    good: list[Item] = field(default_factory=list)
    last: bool = False
    in_flight: InFlight | None = None

    def add(self, item: Item) -> None:
        self.items.append(item)
        if item.picture is not None:
            self.good.append(item)


class Idle:
    """In place of a row: there is no unit to be had now."""


Decoding = tuple[Lease, Future[Item] | None]  # None: the unit ends


@dataclass(frozen=True)
class Output:
    """Where finished units go, and what their markers say. on_commit is called after each, in the writer thread."""

    folder: Path
    split: str
    samples_per_shard: int
    recipe: dict[str, Any]
    plan: dict[str, Any]
    batch_size: int
    on_commit: Callable[[], object] = lambda: None


class Pipeline:
    """Works on units until all are finished. on_progress is called in the main thread after each batch."""

    def __init__(
        self,
        records: Records,
        leases: Leases,
        encoder: BatchEncoder,
        output: Output,
        read: Callable[[bytes, str], Picture],
        num_threads: int,
        on_progress: Callable[[Stats], None],
    ) -> None:
        self._records, self._leases, self._encoder, self._output = records, leases, encoder, output
        self._read_picture, self._num_threads, self._on_progress = read, num_threads, on_progress
        self._failed = threading.Event()
        self._failure: BaseException | None = None
        self._decoded: queue.Queue[Decoding | Idle | None] = queue.Queue(
            4 * output.batch_size + 2 * num_threads
        )
        self._encoded: queue.Queue[Batch | None] = queue.Queue(2)
        self._launched: deque[Batch] = deque()
        self.stats = Stats()

    def run(self) -> Stats:
        """Raises whatever a thread raised; units not committed by then are left for the next run."""
        started = time.monotonic()
        self._encoder.clock.reset()
        patience.ENOUGH.clear()
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode") as decoders:
            threads = [self._thread(self._read, decoders), self._thread(self._write)]
            try:
                for batch in self._batches():
                    if batch.good:
                        samples = [_sample(item) for item in batch.good]
                        batch.in_flight = self._encoder.launch(samples)
                    if batch.last:
                        self._encoder.start_unit()
                    self._launched.append(batch)
                    if len(self._launched) > 1:
                        self._hand_over(self._launched.popleft())
                    self.stats.seconds = time.monotonic() - started
                    self._on_progress(self.stats)
                self._put(self._encoded, None)
                for thread in threads:
                    thread.join()
            except BaseException as error:  # noqa: BLE001  raised below, once the threads have stopped
                self._fail(error)
                decoders.shutdown(wait=False, cancel_futures=True)
                for thread in threads:
                    thread.join()
        self.stats.seconds = time.monotonic() - started
        if self._failure is not None:
            raise self._failure
        return self.stats

    # --- the threads ---

    def _read(self, decoders: ThreadPoolExecutor) -> None:
        for lease in self._leases.all(self._failed):
            if lease is None:
                self._put(self._decoded, Idle())
                continue
            seen: set[str] = set()
            for record in self._records.rows(lease.unit):
                repeated = record.row.key in seen
                seen.add(record.row.key)
                self._put(self._decoded, (lease, decoders.submit(self._decode, record, repeated)))
            self._put(self._decoded, (lease, None))
        self._put(self._decoded, None)

    def _decode(self, record: Record, repeated: bool) -> Item:
        reject = record.reject or ("duplicate_key" if repeated else None)
        if reject is not None or record.image is None:
            return Item(record.row, reject or "missing_image")
        try:
            return Item(record.row, None, self._read_picture(record.image, record.row.key))
        except UnfitImage as error:
            return Item(record.row, error.reason)

    def _batches(self) -> Iterator[Batch]:
        """Batches of one size of pictures each: full ones as they fill, the others at the end of the unit.

        A rejected row goes with the picture before it, and the first ones with the first picture.
        """
        filling: dict[Hashable, Batch] = {}
        group: Hashable = None
        while (entry := self._next_decoded()) is not None:
            lease, item = entry
            if item is None:
                *others, last = filling.values() or [Batch(lease, group)]
                yield from others
                last.last = True
                yield last
                filling, group = {}, None
                continue
            if item.picture is not None:
                if group is None and None in filling:
                    filling[item.picture.sizes] = filling.pop(None)
                group = item.picture.sizes
            batch = filling.setdefault(group, Batch(lease, group))
            batch.group = group
            batch.add(item)
            if len(batch.good) == self._output.batch_size:
                yield filling.pop(group)

    def _write(self) -> None:
        unit: _OpenUnit | None = None
        since = time.monotonic()
        try:
            while (batch := self._get(self._encoded)) is not None:
                unit = unit or _OpenUnit(batch.lease, self._output, self._encoder, since)
                unit.write(batch)
                if batch.last:
                    unit.finish(self._leases)
                    unit, since = None, time.monotonic()
        finally:
            if unit is not None:
                unit.drop()

    # --- hand-over ---

    def _next_decoded(self) -> tuple[Lease, Item | None] | None:
        stage = "reading"
        while True:
            while (
                self._launched and self._decoded.empty()
            ):  # nothing to launch; and a unit may be waiting for this
                self._hand_over(self._launched.popleft())
            with self._timed(stage):
                entry = self._get(self._decoded)
            if not isinstance(entry, Idle):
                break
            stage = "idle"
        if entry is None:
            return None
        lease, decoding = entry
        with self._timed("decoding"):
            return lease, decoding.result() if decoding else None

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        setattr(self.stats, stage, getattr(self.stats, stage) + time.monotonic() - started)

    def _hand_over(self, batch: Batch) -> None:
        results = self._encoder.collect(batch.in_flight) if batch.in_flight else []
        for item, arrays in zip(batch.good, results, strict=True):
            item.arrays, item.reject = arrays, None if arrays else "non_finite"
        batch.in_flight = None
        self.stats.images += len(batch.good)
        self.stats.device, self.stats.awaited = self._encoder.clock.busy, self._encoder.clock.awaited
        with self._timed("writing"):
            self._put(self._encoded, batch)

    def _thread(self, work: Callable[..., None], *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001  handed to the main thread, which raises it
                self._fail(error)

        thread = threading.Thread(target=guarded, name=work.__name__)
        thread.start()
        return thread

    def _fail(self, error: BaseException) -> None:
        if not self._failed.is_set():
            self._failure = error
            self._failed.set()
            patience.ENOUGH.set()

    def _put(self, channel: queue.Queue[Any], item: Any) -> None:
        while not self._failed.is_set():
            try:
                return channel.put(item, timeout=TICK)
            except queue.Full:
                continue
        raise _Stopped

    def _get(self, channel: queue.Queue[Any]) -> Any:
        while not self._failed.is_set():
            try:
                return channel.get(timeout=TICK)
            except queue.Empty:
                continue
        raise _Stopped


class _Stopped(Exception):
    """Another thread has failed: end this one. Never the first failure, so never raised to the user."""


class _OpenUnit:
    """A unit being written. Once its lease is lost, what comes for it is dropped: another process makes the same.

    since: when this process finished its last unit, so that the units' times add up to that of the process.
    """

    def __init__(self, lease: Lease, output: Output, encoder: BatchEncoder, since: float) -> None:
        self._lease, self._output, self._fields = lease, output, encoder.fields
        self._started = since
        self._samples = 0
        members = [*(field.name for field in encoder.fields), "txt", "json"]
        self._writer: UnitWriter | None = None
        with self._lost_lease_drops():
            lease.check()
            self._writer = UnitWriter(
                output.folder, output.split, lease.unit.index, members, output.samples_per_shard, lease.owner
            )

    def write(self, batch: Batch) -> None:
        with self._lost_lease_drops():
            for item in batch.items:
                if self._writer is None:
                    return
                if item.reject is not None or item.arrays is None:
                    self._writer.reject(_row(item), item.reject or "non_finite", batch.group)
                else:
                    self._writer.write(_row(item), _members(item), batch.group)
                    self._samples += 1

    def finish(self, leases: Leases) -> None:
        """Commit, and give the lease back."""
        with self._lost_lease_drops():
            if self._writer is not None:
                self._lease.check()
                seconds = time.monotonic() - self._started
                timings = {
                    "seconds": round(seconds, 3),
                    "images_per_second": round(self._samples / seconds, 1),
                    "batch_size": self._output.batch_size,
                }
                self._writer.commit(self._output.recipe, self._fields, self._output.plan, timings)
                self._output.on_commit()
        self.drop()
        leases.release(self._lease)

    def drop(self) -> None:
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    @contextlib.contextmanager
    def _lost_lease_drops(self) -> Iterator[None]:
        try:
            try:
                yield
            except OSError as error:
                if is_gone(error):  # the new owner has cleared our files away, or somebody the whole folder
                    self._lease.check()
                raise
        except LostLease:
            logger.warning(
                "unit %d: another process took over while this one was held up", self._lease.unit.index
            )
            self.drop()


def _sample(item: Item) -> Sample:
    assert item.picture is not None and item.row.caption is not None
    return Sample(item.row.key, item.row.caption, item.picture.pixels)


def _row(item: Item) -> Row:
    if item.picture is None:
        return item.row
    return replace(item.row, width=item.picture.width, height=item.picture.height)


def _members(item: Item) -> Members:
    """File contents, or arrays, by extension, in the order in which they stand in the tar."""
    assert item.picture is not None and item.arrays is not None
    row = _row(item)
    about: dict[str, Any] = {
        "width": row.width,
        "height": row.height,
        "crop": item.picture.crop,
        "source": row.source,
    }
    if len(set(item.picture.crops.values())) > 1:
        about["crops"] = {str(resolution): crop for resolution, crop in item.picture.crops.items()}
    facts = json.dumps({**about, "extras": row.extras}, ensure_ascii=False, sort_keys=True)
    arrays = {f"{name}.npy": array for name, array in item.arrays.items()}
    return {**arrays, "txt": (row.caption or "").encode(), "json": facts.encode()}
