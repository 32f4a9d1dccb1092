"""Positions in, batch out: each member is read once, from the page cache straight into the batch.

Nothing is read that is not used: not a field that was not asked for, not a caption that dropout removes.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from loader.counter_rng import keyed, normal, uniform
from loader.format import Field, FormatError, npy_header
from loader.npy import npy_array
from loader.order import I64
from loader.source import DataError, OpenShard

if TYPE_CHECKING:
    from loader.reader import BatchReader

NOISE, DROP, FLIP = 11, 12, 13  # what a hash is for; order.py has 1 to 3

Array = npt.NDArray[Any]
Batch = dict[str, Any]

COPIES = 3  # of a damaged shard that are tried: another thread may have opened it before it was removed


@dataclass(frozen=True)
class Draw:
    """What is random in a sample."""

    seed: int = 0
    posterior: Literal["sample", "mean"] = "sample"
    caption_drop_prob: float = 0.0
    flip_prob: float = 0.0


def noise(seed: int, epoch: int, position: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """The standard normal noise of the sample at `position` of `epoch`: `latents = (mean + std * noise - shift) * scale`."""
    key = keyed(seed, NOISE, epoch, np.array([position]))
    return normal(key, int(np.prod(shape))).reshape(*shape)


class Work:
    """One batch in the making. Arrays of fields of one shape are filled in place, others listed and put together."""

    def __init__(self, reader: "BatchReader", epoch: int, positions: I64) -> None:
        self.reader, self.epoch, self.positions = reader, epoch, positions
        self.select, self.draw, self.size = reader.select, reader.draw, len(positions)
        self.counts: Counter[str] = Counter(samples=self.size)
        self.dropped = self._chance(DROP, self.draw.caption_drop_prob)
        self.flipped = self._chance(FLIP, self.draw.flip_prob if self.select.flipped else 0.0)
        self.keys, self.captions = [""] * self.size, [""] * self.size
        self.arrays: dict[str, torch.Tensor] = {}
        self.listed: dict[str, list[Array | None]] = {}
        for field in (self.select.image, *self.select.text, *self.select.pooled):
            if None in field.shape:
                self.listed[field.name] = [None] * self.size
            else:
                self.arrays[field.name] = reader.buffers.take((self.size, *_known(field)))

    def _chance(self, purpose: int, probability: float) -> npt.NDArray[np.bool_]:
        if not probability:
            return np.zeros(self.size, bool)
        return uniform(keyed(self.draw.seed, purpose, self.epoch, self.positions)) < probability

    # --- reading

    def fill(self, indexes: I64, attempt: int) -> dict[int, DataError]:
        """Read the samples of the batch at `indexes`, shard by shard; returns those that failed, and why."""
        places = self.reader.order.locate(self.epoch, self.positions[indexes], attempt)
        if not attempt:
            self.counts.update(self.reader.samples_by_path(places.shard))
        by_place = np.lexsort((places.row, places.shard))
        bounds = np.flatnonzero(np.diff(places.shard[by_place])) + 1
        failed: dict[int, DataError] = {}
        for part in np.split(by_place, bounds):
            failed |= self._read_shard(int(places.shard[part[0]]), indexes[part], places.row[part])
        return failed

    def _read_shard(self, number: int, indexes: I64, rows: I64) -> dict[int, DataError]:
        try:
            shard = self.reader.open(number)
            errors = self._read_rows(shard, indexes, rows)
            for _ in range(COPIES):
                if not errors or not self.reader.reopen(number, shard):
                    break
                shard = self.reader.open(number)
                errors = self._read_rows(shard, indexes, rows)
        except DataError as error:
            return dict.fromkeys(indexes.tolist(), error)
        if not errors:
            return {}
        row_of = dict(zip(indexes.tolist(), rows.tolist(), strict=True))
        return {
            index: DataError(f"{self.reader.name(number)}, key {shard.table.key(row_of[index])}: {error}")
            for index, error in errors.items()
        }

    def _read_rows(self, shard: OpenShard, indexes: I64, rows: I64) -> dict[int, Exception]:
        errors: dict[int, Exception] = {}
        image, mirror = self.select.image, self.flipped[indexes]
        self._read_field(shard, image, image.name, indexes[~mirror], rows[~mirror], errors)
        if self.select.flipped:
            self._read_field(shard, image, self.select.flipped.name, indexes[mirror], rows[mirror], errors)
        kept = ~self.dropped[indexes]
        for field in (*self.select.text, *self.select.pooled):
            self._read_field(shard, field, field.name, indexes[kept], rows[kept], errors)
        if self.select.extras:
            self._read_words(shard, indexes, rows, errors)
        return errors

    def _read_field(
        self,
        shard: OpenShard,
        field: Field,
        member: str,
        indexes: I64,
        rows: I64,
        errors: dict[int, Exception],
    ) -> None:
        """Fast where the member is just what its field says: one system call, header compared, data in its final place."""
        sizes = shard.table.size[member][rows].tolist()
        places = zip(indexes.tolist(), shard.table.offset[member][rows].tolist(), sizes, strict=True)
        self.counts["bytes"] += sum(sizes)
        array, listed = self.arrays.get(field.name), self.listed.get(field.name)
        header, expected, length, full = bytearray(), b"", 0, -1
        if array is not None:
            target = memoryview(array.numpy().data).cast("B")
            length, expected = len(target) // self.size, npy_header("float16", _known(field))
            header, full = bytearray(len(expected)), len(expected) + length
        for index, offset, size in places:
            try:
                if size == full:
                    row = target[index * length : (index + 1) * length]
                    if os.preadv(shard.descriptor, [header, row], offset) == size and header == expected:
                        continue
                value = _read_member(shard.descriptor, offset, size, field)
                if array is not None:
                    array[index] = torch.from_numpy(value)
                elif listed is not None:
                    listed[index] = value
            except (OSError, FormatError) as error:
                errors[index] = error

    def _read_words(self, shard: OpenShard, indexes: I64, rows: I64, errors: dict[int, Exception]) -> None:
        """Keys and captions."""
        table = shard.table
        for index, row in zip(indexes.tolist(), rows.tolist(), strict=True):
            self.keys[index] = table.key(row)
            if "caption" not in self.select.extras:
                continue
            caption = table.caption(row)
            if caption is None:
                size, offset = int(table.size["txt"][row]), int(table.offset["txt"][row])
                try:
                    caption = os.pread(shard.descriptor, size, offset).decode("utf-8", errors="replace")
                except OSError as error:
                    errors[index] = error
                    continue
            self.captions[index] = caption

    # --- finishing

    def finish(self) -> Batch:
        dropped = torch.from_numpy(self.dropped)
        batch: Batch = {"image_latents": self._image(), "drop_caption_mask": 1.0 - dropped.float()}
        for field in self.select.text:
            mask_name = field.name.replace("latents", "mask", 1)
            text, mask = self._text(field)
            if mask is not None:
                batch[mask_name] = mask
            batch[field.name] = text.unsqueeze(1)
        for field in self.select.pooled:
            batch[field.name] = self._without_dropped(self.arrays[field.name])
        if "key" in self.select.extras:
            batch["key"] = self.keys
        if "caption" in self.select.extras:
            batch["caption"] = self.captions
        return batch

    def _image(self) -> torch.Tensor:
        """(B, C, H, W) float16."""
        field = self.select.image
        if field.name in self.arrays:
            raw = self.arrays[field.name]
        else:
            values = [value for value in self.listed[field.name] if value is not None]
            if len({value.shape for value in values}) > 1:
                shapes = sorted({value.shape for value in values})
                raise FormatError(f"{field.name}: a batch of several shapes {shapes} cannot be stacked")
            raw = self.reader.buffers.take((self.size, *values[0].shape))
            np.stack(values, out=raw.numpy())
        return raw if field.kind == "latents" else self._latents(raw)

    def _latents(self, raw: torch.Tensor) -> torch.Tensor:
        """`(mean + std * noise - shift) * scale` in float32, rounded once to float16."""
        mean, std = raw.float().chunk(2, dim=1)
        if self.draw.posterior == "sample":
            keys = keyed(self.draw.seed, NOISE, self.epoch, self.positions)
            deviates = torch.from_numpy(normal(keys, mean[0].numel())).view_as(mean)
            mean = mean.add_(std.mul_(deviates))  # addcmul rounds once where the CPU can, twice where not
        field = self.select.image
        if field.shift is not None:
            mean = mean.sub_(torch.tensor(field.shift).view(-1, 1, 1))
        if field.scale is not None:
            mean = mean.mul_(torch.tensor(field.scale).view(-1, 1, 1))
        return self.reader.buffers.take(tuple(mean.shape)).copy_(mean)

    def _without_dropped(self, rows: torch.Tensor) -> torch.Tensor:
        for index in np.flatnonzero(self.dropped).tolist():  # a mask would go through all rows
            rows[index] = 0
        return rows

    def _text(self, field: Field) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) with zeros where dropped, and (B, T) True at real tokens, if their number varies.

        A dropped caption is T vectors of zero, all of them real: attention over nothing would be NaN.
        """
        if field.name in self.arrays:
            return self._without_dropped(self.arrays[field.name]), None
        values = self.listed[field.name]
        longest = self.select.caption_tokens or max([1, *(len(v) for v in values if v is not None)])
        text = self.reader.buffers.take((self.size, longest, *_known(field)))
        mask = torch.ones(self.size, longest, dtype=torch.bool)
        for index, value in enumerate(values):
            tokens = 0 if value is None else min(len(value), longest)
            if value is not None:
                text[index, :tokens] = torch.from_numpy(value[:tokens])
                mask[index, tokens:] = False
            text[index, tokens:] = 0
        return text, mask


def _known(field: Field) -> tuple[int, ...]:
    """The axes of fixed length."""
    return tuple(n for n in field.shape if n is not None)


def _read_member(descriptor: int, offset: int, size: int, field: Field) -> Array:
    """A member as float16. Raises FormatError unless it is a whole .npy of its field's shape."""
    data = bytearray(size)
    if os.preadv(descriptor, [data], offset) != size:
        raise FormatError(f"{field.member} ends early")
    array = npy_array(data)
    dtype, shape = array.dtype, array.shape
    if len(shape) != len(field.shape) or any(
        n not in (None, m) for n, m in zip(field.shape, shape, strict=True)
    ):
        raise FormatError(f"{field.member} is of shape {shape}, not {field.shape}")
    if dtype.kind != "f":
        raise FormatError(f"{field.member} is of dtype {dtype}, not float")
    return array.astype(np.float16)
