"""Batches of an order over some sources: which shards are open, and what stands in for a sample that cannot be read."""

import errno
import logging
import resource
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from loader.batch import Batch, Shards, Work
from loader.buffers import Buffers
from loader.cache import Cache
from loader.draw import Draw
from loader.early import ByRanges, FirstBatches
from loader.format import FormatError
from loader.joined import Source
from loader.order import ATTEMPTS, I64, Order
from loader.printable import printable
from loader.select import Selection
from loader.sidecar import Table
from loader.source import DataError, OpenShard
from loader.tables import Tables

log = logging.getLogger("loader")

OPEN_SHARDS = 64  # descriptors at most; a sixteenth of what the process may open, where that is less
HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE}  # no other shard would do better


class BatchReader:
    """Makes batches of one order over some sources. Threads may share it, processes may not.

    sources: each with the number of its first shard in the order. chosen: for each shard of the order the numbers of the samples
    that are read; None: all.
    """

    def __init__(
        self,
        sources: Sequence[tuple[int, Source]],
        order: Order,
        select: Selection,
        draw: Draw,
        on_error: Literal["substitute", "raise"],
        pin_memory: bool,
        cache: Cache,
        chosen: Sequence[I64] | None = None,
    ) -> None:
        self.order, self.select, self.draw, self.cache = order, select, draw, cache
        self.buffers = Buffers(pin_memory)
        cache.room.share(self.let_go)
        self._sources, self._on_error, self._chosen = sources, on_error, chosen
        self.tables = Tables(self.source, select.members, select.columns, chosen)
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenShard | DataError] = OrderedDict()
        files = min(OPEN_SHARDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 16)
        self._most = max(4, files // max(source.tars for _, source in sources))
        self._first: FirstBatches | None = None
        self._epoch = self.in_progress = 0
        self._watcher: Callable[[int, int], None] = lambda *_: None

    def watch(self, finished: Callable[[int, int], None]) -> None:
        """Call `finished(epoch, first position)` behind every batch."""
        self._watcher = finished

    def begin_stream(self, processes: int) -> threading.Event:
        """Read its first batches by ranges; what is returned is set when whole shards may be fetched."""
        self._first = FirstBatches(self, processes)
        return self._first.first_is_here

    def read(self, epoch: int, positions: I64) -> tuple[Batch, Counter[str]]:
        """The samples at `positions` of `epoch`, and counts for stats()."""
        with self._lock:
            self.in_progress += 1
        try:
            return self._read(epoch, positions)
        finally:
            with self._lock:
                self.in_progress -= 1
            self._watcher(epoch, int(positions[0]))

    def _read(self, epoch: int, positions: I64) -> tuple[Batch, Counter[str]]:
        self._forgive(epoch)
        work = _begin(self, self._first.view() if self._first else None, epoch, positions)
        failed = work.fill(np.arange(len(positions)), 0)
        work.counts["substitutes"] = len(failed)
        for attempt in range(1, ATTEMPTS + 1):
            if not failed:
                break
            for error in failed.values():
                if self._on_error == "raise":
                    raise error
                log.warning("%s: taking another sample", error)
            failed = work.fill(np.array(list(failed)), attempt)
        if failed:
            raise DataError(f"no readable sample in {ATTEMPTS} other places: {next(iter(failed.values()))}")
        return work.finish(), work.counts + _checked(self.cache.counts.take(), self._on_error)

    def open(self, number: int) -> OpenShard:
        """Shard `number` of the order. A failure is raised again without another try, until the next epoch."""
        with self._lock:
            known = self._open.get(number)
            if known is not None:
                self._open.move_to_end(number)
        if known is None:
            known = _opened(self, number, self.tables.get(number), self._chosen)
            with self._lock:
                self._open[number] = known
                while len(self._open) > self._most:
                    self._open.popitem(last=False)
                if isinstance(known, OpenShard):
                    self.tables.keep(number, known.table)
        if isinstance(known, DataError):
            raise known
        return known

    def reserve(self, number: int) -> bool:
        """Take the room for a shard; False where there is none now."""
        source, local = self.source(number)
        return source.reserve(local)

    def prefetch(self, number: int) -> bool:
        source, local = self.source(number)
        return source.prefetch(local)

    def plan(self, numbers: Sequence[int]) -> None:
        """Tell the cache which shards are needed soon, in that order."""
        self.cache.room.plan([name for s, local in map(self.source, numbers) for name in s.cached_as(local)])

    def release(self, number: int) -> None:
        """Close a shard that no batch needs soon, and tell the cache."""
        with self._lock:
            if isinstance(self._open.get(number), OpenShard):
                del self._open[number]
        for name in (place := self.source(number))[0].cached_as(place[1]):
            self.cache.room.release(name)

    def _forgive(self, epoch: int) -> None:
        """A new epoch gives the shards that failed another chance: an outage may be over."""
        with self._lock:
            if epoch > self._epoch:
                self._epoch = epoch
                for number in [n for n, known in self._open.items() if isinstance(known, DataError)]:
                    del self._open[number]

    def let_go(self) -> None:
        """Let go of all shards but those that a thread reads now."""
        with self._lock:
            for number in [n for n, known in self._open.items() if isinstance(known, OpenShard)]:
                del self._open[number]

    def reopen(self, number: int, damaged: OpenShard) -> bool:
        """True if the next `open` gives another copy of the shard than the damaged one."""
        source, local = self.source(number)
        with self._lock:
            if self._open.get(number) is not damaged:  # another thread was faster
                return True
            self.tables.forget(number)
        gone = source.discard(local)
        with self._lock:
            if gone:
                self._open.pop(number, None)
            return gone or self._open.get(number) is not damaged

    def name(self, number: int) -> str:
        source, local = self.source(number)
        return f"{source.files.url}, shard {printable(source.names[local])}"

    def shapes(self, number: int) -> str:
        source, local = self.source(number)
        return source.shapes[local]

    def samples_by_path(self, shards: I64) -> dict[str, int]:
        firsts = np.array([first for first, _ in self._sources])
        counts = np.bincount(np.searchsorted(firsts, shards, side="right") - 1, minlength=len(firsts))
        return {f"path {number}": count for number, count in enumerate(counts.tolist())}

    def source(self, number: int) -> tuple[Source, int]:
        first, source = [pair for pair in self._sources if pair[0] <= number][-1]
        return source, number - first


def _begin(reader: Shards, view: ByRanges | None, epoch: int, positions: I64) -> Work:
    """Raises DataError where there is no memory for what the manifest claims."""
    try:
        work = Work(view or reader, epoch, positions)
    except MemoryError as error:
        raise DataError(
            f"batch_size={len(positions)}: no memory for a batch of the shapes that the manifest says: {error}"
        ) from error
    if view:
        view.prepare(work)
    return work


def _checked(counts: Counter[str], on_error: str) -> Counter[str]:
    """Raises DataError where earlier batches held something else than the shards, and that must not be."""
    if counts["wrong_ranges"] and on_error == "raise":
        raise DataError(
            f"{counts['wrong_ranges']} byte ranges that the first batches were read from were not what the shards hold; "
            "begin again: what lies in the cache now is verified"
        )
    return counts


def _opened(
    reader: BatchReader, number: int, kept: Table | None, chosen: Sequence[I64] | None
) -> OpenShard | DataError:
    """The shard, with the table that an earlier opening gave, if it is kept; or why there is none."""
    source, local = reader.source(number)
    try:
        shard = source.open(local, reader.select.members, reader.select.columns, kept)
    except (OSError, FormatError) as error:
        if isinstance(error, PermissionError) or getattr(error, "errno", None) in HOPELESS:
            raise
        return DataError(f"{reader.name(number)}: {error}")
    if kept is None and chosen is not None:
        shard.keep(chosen[number])
    return shard
