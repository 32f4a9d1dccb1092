"""Positions in, batch out: each member is read once, from the page cache straight into the batch.

Nothing is read that is not used: not a field that was not asked for, not a caption that dropout removes.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from loader.buffers import Buffers
from loader.counter_rng import keyed, normal
from loader.draw import NOISE, Draw
from loader.extras import Extras
from loader.format import Field
from loader.members import Rows, known_axes
from loader.order import I64, Order
from loader.printable import printable
from loader.select import Selection, encoder_of, mirror_of
from loader.source import DataError, OpenShard

Batch = dict[str, Any]
Mask = npt.NDArray[np.bool_]

COPIES = 3  # of a damaged shard that are tried: another thread may have opened it before it was removed


class Shards(Protocol):
    """Who opens the shards that a batch is read from, and knows what is read and drawn: a BatchReader."""

    order: Order
    select: Selection
    draw: Draw
    buffers: Buffers

    def open(self, number: int) -> OpenShard: ...

    def reopen(self, number: int, damaged: OpenShard) -> bool: ...

    def name(self, number: int) -> str: ...

    def shapes(self, number: int) -> str: ...

    def samples_by_path(self, shards: I64) -> dict[str, int]: ...


class Work:
    """One batch in the making: what is drawn, and the rows that are read."""

    def __init__(self, reader: Shards, epoch: int, positions: I64) -> None:
        self.reader, self.epoch, self.positions = reader, epoch, positions
        self.select, self.draw, self.size = reader.select, reader.draw, len(positions)
        self.counts: Counter[str] = Counter(samples=self.size)
        encoders = {encoder_of(field) for field in (*self.select.text, *self.select.pooled)}
        self.drawn = self.draw.draw(epoch, positions, encoders, self.select.flipped is not None)
        self.rows = Rows(self.size, self.counts)
        self.extras = Extras(self.select.extras, self.select.image, self.size, self.select.further)
        for field in (self.select.image, *self.select.text, *self.select.pooled, *self.select.features):
            if None in field.shape:
                self.rows.listed[field.name] = [None] * self.size
            else:
                self.rows.arrays[field.name] = reader.buffers.take((self.size, *known_axes(field)))

    # --- reading

    def fill(self, indexes: I64, attempt: int) -> dict[int, DataError]:
        """Read the samples of the batch at `indexes`, shard by shard; returns those that failed, and why."""
        places = self.reader.order.locate(self.epoch, self.positions[indexes], attempt)
        if not attempt:
            self.counts.update(self.reader.samples_by_path(places.shard))
        failed: dict[int, DataError] = {}
        for number, part in places.by_shard():
            failed |= self._read_shard(number, indexes[part], places.row[part])
        return failed

    def reads(self) -> Iterator[tuple[int, str, I64]]:
        """What is read if nothing fails: a shard's number, a member, and of which rows."""
        places = self.reader.order.locate(self.epoch, self.positions)
        for number, part in places.by_shard():
            for _, member, chosen in self._members(part):
                yield number, member, places.row[part][chosen]

    def _read_shard(self, number: int, indexes: I64, rows: I64) -> dict[int, DataError]:
        try:
            shard = self.reader.open(number)
            errors = self._read_rows(number, shard, indexes, rows)
            for _ in range(COPIES):
                if not errors or not self.reader.reopen(number, shard):
                    break
                shard = self.reader.open(number)
                errors = self._read_rows(number, shard, indexes, rows)
        except DataError as error:
            return dict.fromkeys(indexes.tolist(), error)
        if not errors:
            return {}
        row_of, name = dict(zip(indexes.tolist(), rows.tolist(), strict=True)), self.reader.name(number)
        return {
            index: DataError(f"{name}, key {printable(shard.table.key(row_of[index]))}: {error}")
            for index, error in errors.items()
        }

    def _read_rows(self, number: int, shard: OpenShard, indexes: I64, rows: I64) -> dict[int, Exception]:
        errors: dict[int, Exception] = {}
        text = (*self.select.text, *self.select.pooled)
        captions = self.draw.caption.choose(shard.table, text, rows, self.drawn.caption[indexes])
        for field, member, chosen in self._members(indexes):
            places = indexes[chosen], rows[chosen]
            if field in text:
                drawn = captions.only(chosen)
                errors |= self.rows.read_text(shard, field, self.select.further, *places, drawn)
            else:
                errors |= self.rows.read_field(shard, field, member, *places)
        if self.select.extras:
            shapes = self.reader.shapes(number)
            errors |= self.extras.read(shard, indexes, rows, captions, self.drawn.flipped[indexes], shapes)
        return errors

    def _members(self, indexes: I64) -> Iterator[tuple[Field, str, Mask]]:
        """What is read of the samples at `indexes`: a field, its member's name, and for which of them."""
        image, mirror = self.select.image, self.drawn.flipped[indexes]
        yield image, image.name, ~mirror
        if self.select.flipped:
            yield image, self.select.flipped.name, mirror
        for field in self.select.features:
            yield field, field.name, ~mirror
            if self.select.flipped:
                yield field, mirror_of(field), mirror
        for field in (*self.select.text, *self.select.pooled):
            yield field, field.name, ~self.drawn.dropped[encoder_of(field)][indexes]

    # --- finishing

    def finish(self) -> Batch:
        batch: Batch = {"image_latents": self._image(), **self.drawn.drop_masks()}
        for field in self.select.text:
            mask_name = field.name.replace("latents", "mask", 1)
            text, mask = self._text(field)
            if mask is not None:
                batch[mask_name] = mask
            batch[field.name] = text.unsqueeze(1)
        for field in self.select.pooled:
            batch[field.name] = self._fill_dropped(self.rows.arrays[field.name], field)
        for field in self.select.features:
            batch[field.name] = as_values(self.rows.stacked(field, self.reader.buffers), field)
        if self.draw.mark_padding:
            batch["sample_mask"] = torch.from_numpy(~self.reader.order.is_padding(self.epoch, self.positions))
        return batch | self.extras.finish()

    def _image(self) -> torch.Tensor:
        """(B, C, H, W), of the field's dtype."""
        field = self.select.image
        raw = self.rows.stacked(field, self.reader.buffers)
        return self._latents(raw) if field.kind == "moments" else as_values(raw, field)

    def _latents(self, raw: torch.Tensor) -> torch.Tensor:
        """`(mean + std * noise - shift) * scale` in float32, rounded once to the field's dtype."""
        mean, std = as_values(raw, self.select.image).float().chunk(2, dim=1)
        if self.draw.posterior == "sample":
            keys = keyed(self.draw.seed, NOISE, self.epoch, self.positions)
            deviates = torch.from_numpy(normal(keys, mean[0].numel())).view_as(mean)
            mean = mean.add_(std.mul_(deviates))  # addcmul rounds once where the CPU can, twice where not
        field = self.select.image
        if field.shift is not None:
            mean = mean.sub_(torch.tensor(field.shift).view(-1, 1, 1))
        if field.scale is not None:
            mean = mean.mul_(torch.tensor(field.scale).view(-1, 1, 1))
        return as_values(self.reader.buffers.take(tuple(mean.shape)), field).copy_(mean)

    def _fill_dropped(self, rows: torch.Tensor, field: Field) -> torch.Tensor:
        null = self.draw.null.get(field.name)
        stands = 0 if null is None else torch.from_numpy(null)
        # A mask would go through all rows.
        for index in np.flatnonzero(self.drawn.dropped[encoder_of(field)]).tolist():
            rows[index] = stands
        return as_values(rows, field)

    def _text(self, field: Field) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D), and (B, T) True at real tokens, if their number varies.

        A dropped caption is the empty caption's tokens, or T vectors of zero, all of them real: attention over nothing would be
        NaN.
        """
        if field.name in self.rows.arrays:
            return self._fill_dropped(self.rows.arrays[field.name], field), None
        null = self.draw.null.get(field.name)
        values = [null if value is None else value for value in self.rows.listed[field.name]]
        longest = self.select.caption_tokens or max([1, *(len(v) for v in values if v is not None)])
        text = self.reader.buffers.take((self.size, longest, *known_axes(field)))
        mask = torch.ones(self.size, longest, dtype=torch.bool)
        for index, value in enumerate(values):
            tokens = 0 if value is None else min(len(value), longest)
            if value is not None:
                text[index, :tokens] = torch.from_numpy(value[:tokens])
                mask[index, tokens:] = False
            text[index, tokens:] = 0
        return as_values(text, field), mask


def as_values(bits: torch.Tensor, field: Field) -> torch.Tensor:
    """What is read as 16 bits a value, of the field's own dtype."""
    return bits.view(torch.bfloat16) if field.dtype == "bfloat16" else bits
