"""decode -> device -> write, overlapped, one unit after another.

    1. reader thread     leases a unit, reads its rows, hands the images to the decode threads
    2. decode threads    image bytes -> uint8 pixels (precompute/input/pixels.py)
    3. main thread       gathers batches and keeps the device one batch ahead (precompute/encode/batch_encoder.py)
    4. writer thread     arrays -> shards (precompute/shards/unit_writer.py), commits the unit, gives the lease back

Queues between them are bounded, so memory is too. Batches are cut from one unit's readable rows in source order: what
is in a batch, and so every value, depends on the unit alone. A fault in any thread stops all, and `run` raises it.
"""

import contextlib
import functools
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from builders.core.images import UndecodableImage
from builders.core.record import Record
from loader.bucket import Bucket
from precompute.encode.batch_encoder import BatchEncoder
from precompute.errors import PrecomputeError
from precompute.input.base_records import BaseRecords
from precompute.input.pixels import Picture
from precompute.input.records import Records
from precompute.runtime.commits import Commits
from precompute.runtime.leases import UnitLease, UnitLeases
from precompute.runtime.stats import Stats
from precompute.runtime.threads import Threads
from precompute.runtime.unit_output import Batch, Item, OpenUnit, Output


class Idle:
    """Stands in place of a row: there is no unit to be had now."""


Decoding = tuple[UnitLease, Future[Item] | None]  # None: the unit ends


class Pipeline:
    """Works on units until all are finished. on_progress is called in the main thread after each batch."""

    def __init__(
        self,
        records: Records | BaseRecords,
        leases: UnitLeases,
        encoder: BatchEncoder,
        output: Output,
        read: Callable[[Record], Picture],
        num_threads: int,
        on_progress: Callable[[Stats], None],
    ) -> None:
        self._records, self._leases, self._encoder, self._output = records, leases, encoder, output
        self._read_picture, self._num_threads, self._on_progress = read, num_threads, on_progress
        self._threads = Threads()
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
        with ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode") as decoders:
            self._threads.start(self._read, decoders)
            self._threads.start(self._write)
            try:
                for batch in self._batches():
                    batch.launch(self._encoder)
                    if batch.last:
                        self._encoder.start_unit()
                    self._launched.append(batch)
                    if len(self._launched) > 1:
                        self._hand_over(self._launched.popleft())
                    self.stats.last(time.monotonic() - started)
                    self._on_progress(self.stats)
                for batch in self._launched:
                    self._hand_over(batch)
                self._threads.put(self._encoded, None)
                self._threads.join()
            except BaseException as error:  # noqa: BLE001  raised below, once the threads have stopped
                self._threads.fail(error)
                decoders.shutdown(wait=False, cancel_futures=True)
                self._threads.join()
        self.stats.last(time.monotonic() - started)
        self._threads.raise_failure()
        return self.stats

    # --- the threads ---

    def _read(self, decoders: ThreadPoolExecutor) -> None:
        for lease in self._leases.all(self._threads.failed):
            if lease is None:
                self._threads.put(self._decoded, Idle())
                continue
            seen: set[str] = set()
            for record in self.stats.counted(self._records.rows(lease.unit)):
                if record.key in seen:
                    record = replace(record, reject=record.reject or "duplicate_key")
                seen.add(record.key)
                self._threads.put(
                    self._decoded, (lease, decoders.submit(_decode, record, self._read_picture))
                )
            self._threads.put(self._decoded, (lease, None))
        self._threads.put(self._decoded, None)

    def _batches(self) -> Iterator[Batch]:
        """Batches of one size of pictures each: full ones as they fill, the others at the end of the unit.

        A rejected row goes with the picture before it, the first ones with the first picture; a layer's with its shard's.
        """
        filling: dict[str | Bucket | None, Batch] = {}
        bucket: Bucket | None = None
        while (entry := self._next_decoded()) is not None:
            lease, item = entry
            if item is None:
                *others, last = filling.values() or [Batch(lease, bucket)]
                yield from others
                last.end_unit()
                yield last
                filling, bucket = {}, None
                continue
            if item.picture is not None:
                if bucket is None and None in filling:
                    filling[item.picture.bucket] = filling.pop(None)
                bucket = item.picture.bucket
            place = item.record.shard or bucket
            batch = filling.setdefault(place, Batch(lease, bucket))
            batch.add(item, bucket)
            if len(batch.good) == self._output.batch_size:
                yield filling.pop(place)

    def _write(self) -> None:
        unit: OpenUnit | None = None
        since = time.monotonic()
        commits = Commits(self._output.destination.behind, self._threads.fail)
        try:
            while (batch := self._threads.get(self._encoded)) is not None:
                unit = unit or OpenUnit(batch.lease, self._output, self._encoder, since)
                unit.write(batch)
                if batch.last:
                    ended = time.monotonic()
                    commits.add(functools.partial(unit.finish, self._leases, ended))
                    unit, since = None, ended
        finally:
            if unit is not None:
                unit.drop()
            commits.close()

    # --- hand-over ---

    def _next_decoded(self) -> tuple[UnitLease, Item | None] | None:
        stage = "reading"
        while True:
            # There is nothing to launch; and a unit may be waiting for this.
            while self._launched and self._decoded.empty():
                self._hand_over(self._launched.popleft())
            with self._timed(stage):
                entry = self._threads.get(self._decoded)
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
        self.stats.spend(stage, time.monotonic() - started)

    def _hand_over(self, batch: Batch) -> None:
        batch.collect(self._encoder)
        self.stats.finish(len(batch.items), len(batch.good), self._encoder.clock)
        with self._timed("writing"):
            self._threads.put(self._encoded, batch)


def _decode(record: Record, read: Callable[[Record], Picture]) -> Item:
    if record.reject is not None:
        return Item(record)
    try:
        return Item(record, read(record))
    except UndecodableImage as error:
        return Item(replace(record, reject=error.reject))
    except MemoryError as error:
        raise PrecomputeError(
            "--num-threads: no memory left to decode an image; use fewer threads or processes, or a smaller --batch-size"
        ) from error
