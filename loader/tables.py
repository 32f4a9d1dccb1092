"""The tables of the shards used last: where their samples lie, also while a shard itself is closed or on the way."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from loader.joined import Source
from loader.order import I64
from loader.sidecar import Table
from loader.source import ManifestSource

MOST = 256


class Tables:
    """Threads share it. find: the source of a shard of the order, and its number there. chosen: of each shard the samples read."""

    def __init__(
        self,
        find: Callable[[int], tuple[Source, int]],
        members: Sequence[str],
        columns: Sequence[str],
        chosen: Sequence[I64] | None,
    ) -> None:
        self._find, self._members, self._columns, self._chosen = find, members, columns, chosen
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Table] = OrderedDict()

    def get(self, number: int) -> Table | None:
        return self._kept.get(number)

    def keep(self, number: int, table: Table) -> None:
        with self._lock:
            self._kept[number] = table
            self._kept.move_to_end(number)
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)

    def forget(self, number: int) -> None:
        self._kept.pop(number, None)

    def read(self, number: int) -> Table:
        """The table of a shard of a manifest, from its sidecar alone. Raises OSError or FormatError."""
        if (table := self.get(number)) is None:
            source, local = self._find(number)
            assert isinstance(source, ManifestSource)
            table = source.read_table(local, self._members, self._columns)
            table = table if self._chosen is None else table.only(self._chosen[number])
            self.keep(number, table)
        return table
