"""A stream's first batches by byte ranges, so that a trainer waits for their own bytes and not for whole shards.

Behind the first batch the shards are fetched ahead as ever, without what is here of them already. What later batches read by ranges,
or several processes, is fetched again with the whole: it is so only where it is a small part of that.
"""

import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from loader.batch import Shards, Work
from loader.cache import Cache
from loader.format import FormatError
from loader.joined import Source
from loader.order import I64
from loader.partial import Partial, spans_of
from loader.remote import RemoteFolder
from loader.sidecar import Table
from loader.source import ManifestSource, OpenShard
from loader.tables import Tables

log = logging.getLogger("loader")

BATCHES = 8  # of a stream
SMALL = 1 << 25  # bytes of shards that come as fast as their spans do
TWICE = 0.04  # of a dataset's bytes may be fetched a second time by several processes
LATER = 0.01  # and so many by one, whose first batch is fetched once
SPARSE = 10  # a batch is read by ranges where its shards are so many times as large
SIDECARS = 16  # fetched at the same time
Reads = dict[int, list[tuple[str, I64]]]


class Shelf(Shards, Protocol):
    """Who has the shards: a BatchReader."""

    cache: Cache

    def source(self, number: int) -> tuple[Source, int]: ...

    @property
    def tables(self) -> Tables: ...


class ByRanges:
    """A batch's view of the shards: what was read of some of them, and the others as the reader has them."""

    def __init__(self, reader: Shards, fetch: Callable[[Work], dict[int, OpenShard]]) -> None:
        self.order, self.select, self.draw, self.buffers = (
            reader.order,
            reader.select,
            reader.draw,
            reader.buffers,
        )
        self._reader, self._fetch = reader, fetch
        self._partial: dict[int, OpenShard] = {}

    def prepare(self, work: Work) -> None:
        self._partial = self._fetch(work)

    def open(self, number: int) -> OpenShard:
        return self._partial.get(number) or self._reader.open(number)

    def reopen(self, number: int, damaged: OpenShard) -> bool:
        """What came by ranges was hashed by nobody: the whole shard is."""
        if self._partial.get(number) is damaged:
            del self._partial[number]
            return True
        return self._reader.reopen(number, damaged)

    def name(self, number: int) -> str:
        return self._reader.name(number)

    def shapes(self, number: int) -> str:
        return self._reader.shapes(number)

    def samples_by_path(self, shards: I64) -> dict[str, int]:
        return self._reader.samples_by_path(shards)


class FirstBatches:
    """The first batches of a stream, which threads share. processes: that read the same shards on this machine.

    first_is_here: set as soon as the first batch wants nothing more from the network, or waits for whole shards.
    """

    def __init__(self, reader: Shelf, processes: int) -> None:
        self._reader, self._processes = reader, processes
        self.first_is_here = threading.Event()
        self._lock, self._begun, self._over = threading.Lock(), 0, False
        shards = np.flatnonzero(reader.order.shards).tolist()
        places = [(s, local) for s, local in map(reader.source, shards) if isinstance(s, ManifestSource)]
        share = LATER if processes == 1 else TWICE / processes
        self._spare = share * sum(s.sizes[local] for s, local in places if s.cached_as(local))

    def view(self) -> ByRanges | None:
        """What the next batch is read from; None: from whole shards."""
        with self._lock:
            number, self._begun = self._begun, self._begun + 1
        if number >= BATCHES or self._over:
            return None
        return ByRanges(self._reader, self._read_first if not number else self._read_later)

    def _read_first(self, work: Work) -> dict[int, OpenShard]:
        try:
            return self._read(work, first=True)
        finally:
            self.first_is_here.set()

    def _read_later(self, work: Work) -> dict[int, OpenShard]:
        while not self.first_is_here.wait(0.1):
            self._reader.cache.stop.check("the first batch")
        return self._read(work, first=False)

    def _read(self, work: Work, first: bool) -> dict[int, OpenShard]:
        """The shards that are not here, as far as the batch needs them; none where they are better fetched whole."""
        if self._over:
            return {}
        try:
            reads = self._missing(work)
            partial = self._fetch(reads, first) if reads else {}
        except (OSError, FormatError) as error:
            log.info("the first batches wait for whole shards: %s", error)
            partial = {}
        self._over = not partial
        return {
            number: OpenShard({"": os.dup(some.descriptor)}, self._reader.tables.read(number))
            for number, some in partial.items()
        }

    def _missing(self, work: Work) -> Reads:
        reads: Reads = defaultdict(list)
        for number, member, rows in work.reads():
            if len(rows) and _is_missing(*self._reader.source(number)):
                reads[number].append((member, rows))
        return reads if sum(self._bytes(number) for number in reads) > SMALL else {}

    def _fetch(self, reads: Reads, first: bool) -> dict[int, Partial]:
        with ThreadPoolExecutor(SIDECARS, thread_name_prefix="loader-sidecars") as pool:
            tables = dict(zip(reads, pool.map(self._reader.tables.read, reads), strict=True))
        spans = {number: _spans(tables[number], members) for number, members in reads.items()}
        if not self._afford(spans, first):
            return {}
        folder = self._reader.cache.folder
        partial = {number: Partial(folder, some) for number, some in spans.items()}
        for files, numbers in self._by_files(reads):
            files.read_spans({self._path(number): partial[number] for number in numbers})
            if first and self._processes == 1:
                for number in numbers:
                    files.hold(self._path(number), partial[number])
        return partial

    def _afford(self, spans: dict[int, list[tuple[int, int]]], first: bool) -> bool:
        """Whether so much may be fetched, and again with the whole, unless that leaves it out."""
        size = _size(span for some in spans.values() for span in some)
        if size * SPARSE > sum(self._bytes(number) for number in spans):
            return False
        if first and self._processes == 1:
            return True
        with self._lock:
            if size > self._spare:
                return False
            self._spare -= size
        return True

    def _bytes(self, number: int) -> int:
        source, local = self._reader.source(number)
        assert isinstance(source, ManifestSource)
        return source.sizes[local]

    def _path(self, number: int) -> str:
        source, local = self._reader.source(number)
        return source.paths[local]

    def _by_files(self, numbers: Iterable[int]) -> Iterator[tuple[RemoteFolder, list[int]]]:
        found: dict[int, tuple[RemoteFolder, list[int]]] = {}
        for number in numbers:
            files = self._reader.source(number)[0].files
            assert isinstance(files, RemoteFolder)
            found.setdefault(id(files), (files, []))[1].append(number)
        yield from found.values()


def _is_missing(source: Source, local: int) -> bool:
    files, plain = source.files, isinstance(source, ManifestSource)
    return plain and isinstance(files, RemoteFolder) and not files.holds(*source.cached_as(local))


def _spans(table: Table, reads: Sequence[tuple[str, I64]]) -> list[tuple[int, int]]:
    offsets = np.concatenate([table.offset[member][rows] for member, rows in reads])
    return spans_of(offsets, np.concatenate([table.size[member][rows] for member, rows in reads]))


def _size(spans: Iterable[tuple[int, int]]) -> int:
    return sum(end - start for start, end in spans)
