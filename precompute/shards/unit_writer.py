"""Shard writer: a unit appears at its destination whole, or not at all.

Tars and sidecars grow under temporary names in a folder of their own; `commit` syncs them, publishes them, and writes the
marker last. Whatever no marker lists is unfinished, and the next owner of the unit clears it away.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loader.bucket import Bucket
from loader.field_names import further_kind
from loader.format import Field, Marker, Shard, npy_parts
from loader.recipe import Plan, Recipe
from loader.sidecar_schema import sidecar_schema
from loader.state import unit_of
from precompute.errors import OutputError
from precompute.shards.destination import Destination, stem_of
from precompute.shards.tar_writer import TarWriter
from precompute.shards.work_folder import write_new

Members = Mapping[str, bytes | npt.NDArray[Any]]
Piece = tuple[int, int, int]  # a member of another tar: its descriptor, offset and size in bytes


@dataclass(frozen=True)
class SidecarRow:
    """What the sidecar keeps of one source row. width, height in pixels, None where the image is unreadable.

    captions: all of them, `caption` the first; kinds: of each where it is from. columns: further ones of the sidecar by name.
    """

    key: str
    caption: str | None = None
    width: int | None = None
    height: int | None = None
    source: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    captions: Sequence[str] = ()
    caption_kinds: Sequence[str] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)


class Place(NamedTuple):
    """Which shard of a unit a row goes into: the one of its bucket, or in a layer the one of this name."""

    shard: str | None = None
    bucket: Bucket | None = None


class ShardWriter:
    """One tar and its sidecar, under temporary names: `folder/NUMBER.tar`, `folder/NUMBER.parquet`."""

    def __init__(self, folder: Path, number: int, schema: pa.Schema) -> None:
        self.path = folder / str(number)
        self.samples = 0
        self.bucket: Bucket | None = None
        self._schema = schema
        self._tar: TarWriter | None = None
        self._records: list[dict[str, Any]] = []
        self._copied: pa.Table | None = None

    def belong(self, bucket: Bucket) -> None:
        """Be the shard of a bucket."""
        self.bucket = bucket

    def write(self, row: SidecarRow, members: Members) -> None:
        if self._tar is None:
            self._tar = TarWriter(self.path.with_suffix(".tar"))
        record = _record(row, "ok")
        for extension, contents in members.items():
            member = extension.removesuffix(".npy")
            data = npy_parts(contents) if isinstance(contents, np.ndarray) else (contents,)
            record[f"offset_{member}"] = self._tar.add(f"{row.key}.{extension}", *data)
            record[f"size_{member}"] = sum(map(len, data))
        self.samples += 1
        self._records.append(record)

    def copy(
        self,
        rows: pa.Table,
        extensions: Sequence[str],
        pieces: Iterable[Sequence[Piece]],
        hasher: Executor | None,
    ) -> None:
        tar = self._tar = TarWriter(self.path.with_suffix(".tar"), hasher)
        names = [extension.removesuffix(".npy") for extension in extensions]
        offsets = tar.copy(
            (f"{key}.{extension}", *piece)
            for key, members in zip(rows["key"].to_pylist(), pieces, strict=True)
            for extension, piece in zip(extensions, members, strict=True)
        )
        for name, column in zip(names, np.array(offsets).reshape(-1, len(names)).T, strict=True):
            rows = rows.append_column(f"offset_{name}", pa.array(column))
        rows = rows.append_column("status", pa.repeat("ok", len(rows)))
        self.samples, self._copied = len(rows), rows.select(self._schema.names).cast(self._schema)

    def reject(self, row: SidecarRow, reason: str) -> None:
        self._records.append(_record(row, reason))

    def close(self) -> Callable[[], Shard]:
        """End both files. What is returned waits until they are synced; the name is still the temporary one."""
        finished = self._tar.close() if self._tar else None
        table, out = self._copied, io.BytesIO()
        if table is None:
            table = pa.Table.from_pylist(self._records, schema=self._schema)
        pq.write_table(table, out, compression="zstd")
        shard = Shard(
            name="temporary-00000",
            samples=self.samples,
            rows=len(table),
            bytes=self._tar.position if self._tar else 0,
            sha256="",
            parquet_sha256=hashlib.sha256(out.getvalue()).hexdigest(),
        )
        write_new(self.path.with_suffix(".parquet"), out.getvalue())
        return lambda: replace(shard, sha256=finished.result()) if finished else shard

    def discard(self) -> None:
        if self._tar is not None:
            self._tar.discard()


class UnitWriter:
    """Writes the rows of one unit, in source order: `commit` makes them visible, and `discard` must follow, always.

    samples_per_shard: samples a tar holds at most; a unit of more is several shards under one marker.
    owner: names the writing process and its turn, so that two owners of a unit (one presumed dead) never share a
    temporary file. beside: of a layer, the names of its base's shards of the unit: its own stand in their order, and have their
    names where the place has not another file of that name already.
    """

    def __init__(
        self,
        output: Destination,
        unit: int,
        members: Sequence[str],
        samples_per_shard: int,
        owner: str,
        beside: Sequence[str] = (),
    ) -> None:
        self.stem = stem_of(output.split, unit)
        self._output, self._unit = output, unit
        self._schema = sidecar_schema(members)
        self._samples_per_shard = samples_per_shard
        self._beside = beside
        self._begun = output.begin(self.stem, owner)
        self._open: dict[Place, ShardWriter] = {}
        self._closed: list[tuple[Place, ShardWriter, Callable[[], Shard]]] = []
        self._rejected, self._kinds = Counter[str](), Counter[str]()

    def write(
        self, row: SidecarRow, members: Members, bucket: Bucket | None = None, shard: str | None = None
    ) -> None:
        """One sample. members: extension (`moments_256.npy`, `txt`, `json`) -> file contents, or the array that an `.npy`
        file is to hold; adjacent in the tar.

        bucket: samples of different ones never share a shard.
        shard: the name of the one that it goes into, of whatever size; in a layer, where all rows of a unit have one.
        """
        counts = {
            name: len(tokens) for name, tokens in row.columns.items() if name.startswith("caption_tokens")
        }
        self._kinds += _embedded_kinds(row.caption_kinds, counts)
        place = Place(shard, None if shard else bucket)
        if not shard and place in self._open and self._open[place].samples == self._samples_per_shard:
            self._close(place)
        self._shard(place, bucket).write(row, members)

    def copy(
        self,
        rows: pa.Table,
        extensions: Sequence[str],
        pieces: Iterable[Sequence[Piece]],
        bucket: Bucket | None = None,
        hasher: Executor | None = None,
    ) -> None:
        """All samples of a unit of one shard. rows: what the sidecar keeps of them, offsets aside. pieces: of each where the members
        with these extensions lie, adjacent in the tar. hasher: of the tar; None: a thread of its own."""
        names = [name for name in rows.column_names if name.startswith("caption_tokens")]
        lengths = [pc.list_value_length(rows[name]).to_pylist() for name in names]
        alike = Counter(
            zip(map(tuple, rows["caption_kinds"].fill_null([]).to_pylist()), *lengths, strict=True)
        )
        for (kinds, *counts), count in alike.items():
            known = {name: n for name, n in zip(names, counts, strict=True) if n is not None}
            for kind, embedded in _embedded_kinds(kinds, known).items():
                self._kinds[kind] += count * embedded
        self._shard(Place(None, bucket), bucket).copy(rows, extensions, pieces, hasher)

    def reject(
        self, row: SidecarRow, reason: str, bucket: Bucket | None = None, shard: str | None = None
    ) -> None:
        """A source row that became no sample."""
        self._rejected[reason] += 1
        bucket = None if shard else bucket
        self._shard(Place(shard, bucket), bucket).reject(row, reason)

    def commit(
        self,
        recipe: Recipe,
        fields: Iterable[Field],
        plan: Plan,
        timings: dict[str, Any],
        left_out: Mapping[str, int] | None = None,
    ) -> Marker:
        """Make the unit visible: shards first, marker last. Raises an OSError that `is_gone` once `revoke` has taken
        our files, OutputError where a row of a layer is of no shard of the base.

        left_out: files of the source that belong to no row, by reason.
        """
        if not self._open and not self._closed:
            self._shard(Place(next(iter(self._beside), None)))
        for place in list(self._open):
            self._close(place)
        fields = tuple(fields)
        bucketed = any(None in field.shape[1:] for field in fields if field.kind in ("moments", "latents"))
        if self._beside:
            order: dict[str | None, int] = {name: number for number, name in enumerate(self._beside)}
            for place, _, _ in self._closed:
                if place.shard not in order:
                    raise OutputError(
                        f"{self._output}: {self.stem}: a row of shard {place.shard}, which the base has not"
                    )
            self._closed.sort(key=lambda one: order[one[0].shard])
        shards, files = list[Shard](), set[str]()
        for number, (place, writer, synced) in enumerate(self._closed, start=1):
            shard = synced()
            name = place.shard or (self.stem if len(self._closed) == 1 else f"{self.stem}-{number:02d}")
            if unit_of(name) != self._unit:
                raise OutputError(f"{self._output}: shard {name} of the base is not of {self.stem}")
            suffixes = (".tar", ".parquet") if shard.samples else (".parquet",)
            paths = {suffix: writer.path.with_suffix(suffix) for suffix in suffixes}
            name = self._output.publish(paths, name)
            files.update(f"{name}{suffix}" for suffix in suffixes)
            shards.append(replace(shard, name=name, bucket=str(writer.bucket or "") if bucketed else ""))
        # A name may not be the one that was asked for: in a store an owner that died may have left another file there.
        if not self._beside:
            shards.sort(key=lambda shard: (len(shard.name), shard.name))
        marker = Marker(
            split=self._output.split,
            unit=self._unit,
            recipe=recipe,
            fields=fields,
            plan=plan,
            shards=tuple(shards),
            rejected=dict(sorted(self._rejected.items())),
            left_out=dict(sorted((left_out or {}).items())),
            timings=timings,
            caption_kinds=dict(sorted(self._kinds.items())),
        )
        self._output.mark(self.stem, marker.to_json().encode(), files, self._begun)
        return marker

    def discard(self) -> None:
        """Leave nothing temporary behind, committed or not."""
        for shard in [*self._open.values(), *(writer for _, writer, _ in self._closed)]:
            shard.discard()
        self._output.end(self._begun)

    def _shard(self, place: Place, bucket: Bucket | None = None) -> ShardWriter:
        if place not in self._open:
            number = len(self._open) + len(self._closed)
            self._open[place] = ShardWriter(self._begun, number, self._schema)
        if bucket is not None:
            self._open[place].belong(bucket)
        return self._open[place]

    def _close(self, place: Place) -> None:
        self._closed.append((place, self._open[place], self._open[place].close()))
        del self._open[place]


def _embedded_kinds(kinds: Sequence[str], counts: Mapping[str, int]) -> Counter[str]:
    """Count by kind the captions of a row that are embedded. counts: how many, by column of their tokens."""
    fewest: dict[str, int] = {}
    for name, count in counts.items():
        kind = further_kind(name)
        fewest[kind] = min(count, fewest.get(kind, count))
    return Counter(kinds[: fewest.pop("", 0)]) + Counter(fewest)


def _record(row: SidecarRow, status: str) -> dict[str, Any]:
    extras = json.dumps(row.extras, ensure_ascii=False, sort_keys=True)
    return {**vars(row), "extras": extras, "status": status, **row.columns}
