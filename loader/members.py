"""Members of an open shard into arrays: one system call each where a member is just what its field says."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loader.buffers import Buffers
from loader.format import Field, FormatError
from loader.npy import bits16, npy_array, npy_header, stored_dtype
from loader.order import I64
from loader.source import OpenShard

Array = npt.NDArray[Any]


class Rows:
    """The rows of a batch that is being read. Fields of one shape are filled in place, others listed."""

    def __init__(self, size: int, counts: Counter[str]) -> None:
        self.size, self.counts = size, counts
        self.arrays: dict[str, torch.Tensor] = {}
        self.listed: dict[str, list[Array | None]] = {}
        self.keys, self.captions = [""] * size, [""] * size

    def read_field(
        self,
        shard: OpenShard,
        field: Field,
        member: str,
        indexes: I64,
        rows: I64,
        errors: dict[int, Exception],
    ) -> None:
        """Rows of a shard's table to indexes of the batch: one system call, header compared, data in its final place.

        An error of a row goes to `errors`, by index.
        """
        sizes = shard.table.size[member][rows].tolist()
        places = zip(indexes.tolist(), shard.table.offset[member][rows].tolist(), sizes, strict=True)
        self.counts["bytes"] += sum(sizes)
        array, listed = self.arrays.get(field.name), self.listed.get(field.name)
        header, expected, length, full = bytearray(), b"", 0, -1
        tar = shard.descriptor(member)
        if array is not None:
            target = memoryview(array.numpy().data).cast("B")
            length, expected = (
                len(target) // self.size,
                npy_header(stored_dtype(field.dtype), known_axes(field)),
            )
            header, full = bytearray(len(expected)), len(expected) + length
        for index, offset, size in places:
            try:
                if size == full:
                    row = target[index * length : (index + 1) * length]
                    if os.preadv(tar, [header, row], offset) == size and header == expected:
                        continue
                value = _read_member(tar, offset, size, field)
                if array is not None:
                    array[index] = torch.from_numpy(value)
                elif listed is not None:
                    listed[index] = value
            except (OSError, FormatError) as error:
                errors[index] = error

    def read_words(
        self,
        shard: OpenShard,
        extras: Sequence[str],
        indexes: I64,
        rows: I64,
        errors: dict[int, Exception],
    ) -> None:
        """Keys and captions."""
        table = shard.table
        for index, row in zip(indexes.tolist(), rows.tolist(), strict=True):
            self.keys[index] = table.key(row)
            if "caption" not in extras:
                continue
            caption = table.caption(row)
            if caption is None:
                size, offset = int(table.size["txt"][row]), int(table.offset["txt"][row])
                try:
                    caption = os.pread(shard.descriptor("txt"), size, offset).decode(
                        "utf-8", errors="replace"
                    )
                except OSError as error:
                    errors[index] = error
                    continue
            self.captions[index] = caption

    def stacked(self, field: Field, buffers: Buffers) -> torch.Tensor:
        """A field of one shape in all rows, be it another one in the next batch. Raises FormatError where it is not."""
        if field.name in self.arrays:
            return self.arrays[field.name]
        values = [value for value in self.listed[field.name] if value is not None]
        if len({value.shape for value in values}) > 1:
            shapes = sorted({value.shape for value in values})
            raise FormatError(f"{field.name}: a batch of several shapes {shapes} cannot be stacked")
        made = buffers.take((self.size, *values[0].shape))
        np.stack(values, out=made.numpy())
        return made


def known_axes(field: Field) -> tuple[int, ...]:
    """The axes of fixed length."""
    return tuple(n for n in field.shape if n is not None)


def _read_member(descriptor: int, offset: int, size: int, field: Field) -> Array:
    """A member's 16 bits a value. Raises FormatError unless it is a whole .npy of its field's shape."""
    data = bytearray(size)
    if os.preadv(descriptor, [data], offset) != size:
        raise FormatError(f"{field.member} ends early")
    array = npy_array(data)
    shape = array.shape
    if len(shape) != len(field.shape) or any(
        n not in (None, m) for n, m in zip(field.shape, shape, strict=True)
    ):
        raise FormatError(f"{field.member} is of shape {shape}, not {field.shape}")
    try:
        return bits16(array, field.dtype)
    except FormatError as error:
        raise FormatError(f"{field.member} is {error}") from error
