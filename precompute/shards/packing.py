"""Which sample goes where when shards are packed: an index of the chosen ones in a temporary file, and an order of them.

The index has one record batch a shard, mapped into memory and not read, so that what a process holds does not grow with the rows.
"""

import functools
import json
import os
import resource
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from loader.counter_rng import keyed, permute
from loader.format import Field, FormatError
from loader.joined import JoinedSource
from loader.sidecar import I64
from loader.sidecar_schema import sidecar_schema
from loader.source import ManifestSource
from precompute.errors import SourceError
from precompute.shards.shared_keys import find_shared_key
from precompute.shards.sidecar_table import TIMES
from precompute.shards.unit_writer import Piece

PACKED = 4  # what the hash is for; the loader's order has 1 to 3
OPEN = 512  # tars open at once, where the system lets a process have twice as many files
TEXTS = ("txt", "json")  # members that a base has beside its fields
KNOWN = ("key", "status", "offset_", "size_")  # columns that every table has in a form of its own

Shards = ManifestSource | JoinedSource
Pieces = Iterator[list[Piece]]


@dataclass(frozen=True)
class Group:
    """Samples that may share a shard. batches: of the index; ends: where each ends, were they laid end to end."""

    bucket: str
    batches: list[int]
    ends: I64

    @property
    def samples(self) -> int:
        return int(self.ends[-1])


class Packing:
    """The chosen samples of some datasets in their new order. chosen: of each dataset and shard the numbers of its samples.

    shuffle: seed of the order; None: as they lie. most: samples of a unit at most; units are of one size, give or take one.
    Raises OSError or FormatError where a sidecar cannot be read.
    """

    def __init__(
        self, sources: Sequence[Shards], chosen: Sequence[Sequence[I64]], shuffle: int | None, most: int
    ) -> None:
        self._sources, self._shuffle = sources, shuffle
        # Number of the dataset, and of the shard in it, for each batch of the index.
        self._shards = [
            (number, shard)
            for number, parts in enumerate(chosen)
            for shard, samples in enumerate(parts)
            if len(samples)
        ]
        self._index = _index(
            (_rows(sources[n], shard, chosen[n][shard]) for n, shard in self._shards), sources[0].fields
        )
        buckets = [sources[number].shapes[shard] for number, shard in self._shards]
        counts = [len(chosen[number][shard]) for number, shard in self._shards]
        self._groups = [
            Group(bucket, batches, np.cumsum([counts[n] for n in batches]))
            for bucket in sorted(set(buckets))
            for batches in [[n for n, name in enumerate(buckets) if name == bucket]]
        ]
        self._units = [
            (number, group.samples * turn // turns, group.samples * (turn + 1) // turns)
            for number, group in enumerate(self._groups)
            for turns in [-(-group.samples // most)]
            for turn in range(turns)
        ]
        files = min(OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._most_open = files // max(len(source.parts) for source in sources)

    def __len__(self) -> int:
        """Number of units."""
        return len(self._units)

    def shared_key(self) -> tuple[str, Shards, Shards] | None:
        """A key that stands for two samples, and the datasets that have them."""
        found = find_shared_key(self._keys, sum(group.samples for group in self._groups))
        return found and (found[0], self._sources[found[1]], self._sources[found[2]])

    def _keys(self) -> Iterator[tuple[int, Any]]:
        for batch, (number, _) in enumerate(self._shards):
            yield number, self._index.get_batch(batch)["key"]

    def bucket(self, unit: int) -> str:
        """The bucket of all samples of a unit; empty where there are none."""
        return self._groups[self._units[unit][0]].bucket

    def rows(self, unit: int, fields: Sequence[Field], at_once: int) -> tuple[pa.Table, Pieces]:
        """What the sidecar keeps of the samples of a unit, in order, offsets aside, which are others now; and where the members of
        each lie, those of the fields, then txt and json. at_once: units that are read meanwhile, this one among them.
        Raises FormatError where extras are no JSON."""
        number, first, last = self._units[unit]
        group = self._groups[number]
        turns = np.arange(first, last)
        if self._shuffle is not None:
            turns = permute(turns, group.samples, keyed(self._shuffle, PACKED, number))
        at = np.searchsorted(group.ends, turns, side="right")
        batches = np.array(group.batches)[at]
        table = self._look_up(batches, turns - np.concatenate([[0], group.ends])[at])
        _check_extras(table)
        members = [*(field.name for field in fields), *TEXTS]
        offsets, sizes = (
            zip(*(table[f"{what}_{name}"].to_pylist() for name in members), strict=True)
            for what in ("offset", "size")
        )
        tars = self._tars(batches.tolist(), members, self._most_open // at_once)
        kept = [name for name in table.column_names if not name.startswith("offset_")]
        return table.select(kept), (
            list(zip(*places, strict=True)) for places in zip(tars, offsets, sizes, strict=True)
        )

    def _tars(self, batches: Sequence[int], members: Sequence[str], most: int) -> Iterator[list[int]]:
        """Give of each sample the descriptors of its members' tars, which are open until the next is asked for."""
        opened = OrderedDict[int, list[int]]()
        try:
            for batch in batches:
                if batch not in opened:
                    while opened and len(opened) >= most:
                        _close(opened.popitem(last=False)[1])
                    opened[batch] = self._open(batch, members)
                opened.move_to_end(batch)
                yield opened[batch]
        finally:
            for tars in opened.values():
                _close(tars)

    def _open(self, batch: int, members: Sequence[str]) -> list[int]:
        """A descriptor of the tar of each member, in a shard."""
        number, shard = self._shards[batch]
        tars: dict[str, int] = {}
        try:
            for part in reversed(self._sources[number].parts):
                try:
                    tar = part.open_tar(shard)
                except OSError as error:
                    raise SourceError(f"{part.files.url}: {error}") from error
                tars |= dict.fromkeys((*(field.name for field in part.fields), *TEXTS), tar)
        except BaseException:
            _close(tars.values())
            raise
        return [tars[name] for name in members]

    def _look_up(self, batches: I64, rows: I64) -> pa.Table:
        """What the index says of some samples, in their order."""
        found, order = [], []
        for batch in np.unique(batches).tolist():
            at = np.flatnonzero(batches == batch)
            order.append(at)
            found.append(self._index.get_batch(batch).take(pa.array(rows[at])))
        return pa.Table.from_batches(found).combine_chunks().take(pa.array(np.argsort(np.concatenate(order))))


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in set(descriptors):
        os.close(descriptor)


def _index(tables: Iterable[pa.Table], fields: Sequence[Field]) -> Any:
    """Tables as the batches of a file that nobody else sees, each in one."""
    schema = sidecar_schema([*(field.name for field in fields), *TEXTS])
    schema = schema.remove(schema.get_field_index("status"))
    with tempfile.NamedTemporaryFile(suffix=".arrow") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for table in tables:
                for missing in set(schema.names) - set(table.column_names):
                    table = table.append_column(missing, pa.nulls(len(table), schema.field(missing).type))
                writer.write_table(table.select(schema.names).cast(schema).combine_chunks())
        file.flush()
        return pa.ipc.open_file(pa.memory_map(file.name))


def _rows(source: Shards, number: int, samples: I64) -> pa.Table:
    """The sidecars' columns of some samples of a shard, those of all parts beside each other.

    Raises FormatError where one lacks a column, or says of a member that it lies outside its tar.
    """
    tables = []
    for place, part in enumerate(source.parts):
        members = [*(field.name for field in part.fields), *(() if place else TEXTS)]
        told = [name for name in sidecar_schema(members).names if not name.startswith(KNOWN)]
        try:
            tables.append(part.read_table(number, members, told, TIMES))
        except KeyError as error:
            raise FormatError(
                f"{part.files.url}/{part.names[number]}.parquet has no column {error}"
            ) from error
        except FormatError as error:
            raise FormatError(f"{part.files.url}/{error}") from error
        if not tables[-1].keys.equals(tables[0].keys):
            raise FormatError(f"{part.files.url}: {part.names[number]} has other rows than the base")
    rows = functools.reduce(np.intersect1d, [table.rows for table in tables])[samples]
    columns: dict[str, Any] = {"key": tables[0].keys.take(pa.array(rows))}
    for table in tables:
        mine = table.only(np.searchsorted(table.rows, rows))
        facts = {name: column.take(pa.array(rows)) for name, column in table.columns.items()}
        offsets = {f"offset_{name}": pa.array(values) for name, values in mine.offset.items()}
        sizes = {f"size_{name}": pa.array(values) for name, values in mine.size.items()}
        columns = {**facts, **offsets, **sizes, **columns}
    return pa.table(columns)


def _check_extras(table: pa.Table) -> None:
    for key, extras in zip(table["key"].to_pylist(), table["extras"].to_pylist(), strict=True):
        try:
            if extras and extras != "{}":
                json.loads(extras)
        except ValueError as error:
            raise FormatError(f"{key}: its extras are no JSON ({error})") from error
