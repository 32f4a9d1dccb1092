"""The rows of a unit on their way out: batches of them, and the unit being written, while its lease holds."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from builders.core.record import Record
from loader.bucket import Bucket
from loader.field_names import further_name
from loader.recipe import Plan, Recipe
from loader.sidecar_schema import PHASH, tokens_column
from precompute.encode.batch_encoder import BatchEncoder, Encoded, EncoderInput, InFlight
from precompute.errors import LostLease
from precompute.input.base_records import CaptionedRecord
from precompute.input.pixels import Picture
from precompute.input.stamps import Stamp
from precompute.input.units import Unit
from precompute.runtime.leases import UnitLease, UnitLeases
from precompute.shards.destination import Destination
from precompute.shards.missing_ok import is_gone
from precompute.shards.unit_writer import Members, SidecarRow, UnitWriter

logger = logging.getLogger("precompute")


@dataclass(frozen=True)
class Output:
    """Says where finished units go, and what their markers say. on_commit is called after each, in the thread
    that made it visible.

    left_out: of a unit that has been read to its end, the files of the source that belong to no row, by reason.
    layer: of a unit the names of its base's shards, where a sample is its arrays alone, and the rest stands there.
    sources: by unit what its source files looked like before it was read.
    """

    destination: Destination
    samples_per_shard: int
    recipe: Recipe
    plan: Plan
    batch_size: int
    on_commit: Callable[[], object] = lambda: None
    left_out: Callable[[Unit], Mapping[str, int]] = lambda unit: {}
    layer: Callable[[Unit], Sequence[str]] | None = None
    sources: Mapping[int, Stamp] = field(default_factory=dict)
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)


class Item:
    """A record on its way: with its picture once decoded, and with its arrays once encoded. Its file is let go of."""

    def __init__(self, record: Record, picture: Picture | None = None) -> None:
        self.record, self.picture = replace(record, image=None), picture
        self.encoded: Encoded | None = None

    def as_input(self, max_captions: int) -> EncoderInput:
        """What the device is given of it, once it is decoded."""
        record = self.record
        assert self.picture is not None and record.caption is not None
        captions = record.captions or (record.caption,)
        if isinstance(record, CaptionedRecord):
            captions = record.added
        return EncoderInput(record.key, captions[:max_captions], self.picture.pixels)

    def take(self, encoded: Encoded | None) -> None:
        """What the device made of it; None where some number is none."""
        self.encoded = encoded
        if encoded is None:
            self.record = replace(self.record, reject="non_finite")


@dataclass
class Batch:
    """Rows of one unit in source order, those to encode and the rejected ones between them; `last` ends the unit.

    bucket: of the pictures; None as long as there is none.
    """

    lease: UnitLease
    bucket: Bucket | None
    items: list[Item] = field(default_factory=list)
    good: list[Item] = field(default_factory=list)
    last: bool = False
    _in_flight: InFlight | None = None

    def add(self, item: Item, bucket: Bucket | None) -> None:
        """bucket: of its picture, or where it has none of the last one; in a layer it says nothing of a row without."""
        self.items.append(item)
        if item.picture is not None:
            self.good.append(item)
        if item.picture is not None or not item.record.shard:
            self.bucket = bucket

    def end_unit(self) -> None:
        """Be the last one of the unit."""
        self.last = True

    def launch(self, encoder: BatchEncoder) -> None:
        """Let the device begin."""
        if self.good:
            self._in_flight = encoder.launch([item.as_input(encoder.max_captions) for item in self.good])

    def collect(self, encoder: BatchEncoder) -> None:
        """Wait for the device, and give each item its arrays."""
        results = encoder.collect(self._in_flight) if self._in_flight else []
        for item, encoded in zip(self.good, results, strict=True):
            item.take(encoded)
        self._in_flight = None


class OpenUnit:
    """A unit being written. Once its lease is lost, what comes for it is dropped: another process makes the same.

    since: when this process finished its last unit, so that the units' times add up to that of the process.
    """

    def __init__(self, lease: UnitLease, output: Output, encoder: BatchEncoder, since: float) -> None:
        self._lease, self._output, self._fields = lease, output, encoder.fields
        self._several = encoder.max_captions > 1
        self._started = since
        self._samples = 0
        members = [*(field.name for field in encoder.fields), *(() if output.layer else ("txt", "json"))]
        self._writer: UnitWriter | None = None
        with self._lost_lease_drops():
            lease.check()
            there = output.layer(lease.unit) if output.layer else ()
            self._writer = UnitWriter(
                output.destination, lease.unit.index, members, output.samples_per_shard, lease.owner, there
            )

    def write(self, batch: Batch) -> None:
        with self._lost_lease_drops():
            for item in batch.items:
                if self._writer is None:
                    return
                row, shard = _sidecar_row(item), item.record.shard
                if item.record.reject is not None:
                    self._writer.reject(row, item.record.reject, batch.bucket, shard)
                else:
                    self._writer.write(row, self._members(item, row), batch.bucket, shard)
                    self._samples += 1

    def finish(self, leases: UnitLeases, ended: float) -> None:
        """Commit, and give the lease back. ended: when the last row was written."""
        try:
            with self._lost_lease_drops():
                if self._writer is not None:
                    self._lease.check()
                    seconds = max(ended - self._started, 1e-3)
                    timings: dict[str, Any] = {
                        "seconds": round(seconds, 3),
                        "images_per_second": round(self._samples / seconds, 1),
                        "batch_size": self._output.batch_size,
                    }
                    if stamp := self._output.sources.get(self._lease.unit.index):
                        timings["sources"] = stamp.as_json()
                    left_out = self._output.left_out(self._lease.unit)
                    output = self._output
                    self._writer.commit(output.recipe, self._fields, output.plan, timings, left_out)
                    with self._output.one_at_a_time:
                        self._output.on_commit()
        finally:
            self.drop()
        leases.release(self._lease)

    def _members(self, item: Item, row: SidecarRow) -> Members:
        return _arrays(item) if self._output.layer else {**_arrays(item), **_facts(item, row, self._several)}

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


def _sidecar_row(item: Item) -> SidecarRow:
    """What the sidecar keeps of it. The size is that of the picture where pixels were read."""
    record, picture = item.record, item.picture
    width, height = (
        (picture.width, picture.height) if picture and picture.pixels else (record.width, record.height)
    )
    columns: dict[str, Any] = (
        {f"crop_{resolution}": crop for resolution, crop in picture.crops.items()} if picture else {}
    )
    columns |= {PHASH: picture.phash} if picture else {}
    if isinstance(record, CaptionedRecord):
        columns[further_name("captions", record.kind)] = record.added
    if item.encoded is not None:
        columns |= _tokens(item.encoded)
    return SidecarRow(
        record.key,
        record.caption,
        width,
        height,
        record.source,
        dict(record.extras),
        record.captions,
        record.caption_kinds,
        columns,
    )


def _tokens(encoded: Encoded) -> dict[str, list[int]]:
    return {tokens_column(name): lengths for name, lengths in encoded.tokens.items()}


def _arrays(item: Item) -> Members:
    """The arrays by extension, in the order in which they stand in the tar."""
    assert item.encoded is not None
    return {f"{name}.npy": array for name, array in item.encoded.arrays.items()}


def _facts(item: Item, row: SidecarRow, several: bool) -> Members:
    """What else stands in the tar of a sample: its caption, and what is known of it. several: captions of a sample."""
    assert item.picture is not None and item.encoded is not None
    about: dict[str, Any] = {
        "width": row.width,
        "height": row.height,
        "crop": item.picture.crop,
        "source": row.source,
    }
    if len(set(item.picture.crops.values())) > 1:
        about["crops"] = {str(resolution): crop for resolution, crop in item.picture.crops.items()}
    if several:
        about |= {"caption_kinds": list(row.caption_kinds), **_tokens(item.encoded)}
    extras = {**row.extras, "captions": list(row.captions)} if row.captions else row.extras
    facts = json.dumps({**about, "extras": extras}, ensure_ascii=False, sort_keys=True)
    return {"txt": (row.caption or "").encode(), "json": facts.encode()}
