"""Members of an open shard into arrays: one system call each where a member is just what its field says."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loader.buffers import Buffers
from loader.captions import CaptionPlaces, ChosenCaptions
from loader.field_names import further_names
from loader.format import Field, FormatError
from loader.npy import LONGEST_HEADER, bits16, npy_array, npy_header, stored_dtype
from loader.order import I64
from loader.source import OpenShard

Array = npt.NDArray[Any]


class Rows:
    """The rows of a batch that is being read. Fields of one shape are filled in place, others listed."""

    def __init__(self, size: int, counts: Counter[str]) -> None:
        self.size, self.counts = size, counts
        self.arrays: dict[str, torch.Tensor] = {}
        self.listed: dict[str, list[Array | None]] = {}

    def read_text(
        self,
        shard: OpenShard,
        field: Field,
        further: Sequence[str],
        indexes: I64,
        rows: I64,
        captions: ChosenCaptions,
    ) -> dict[int, Exception]:
        """One caption of each row, as `read_field` does. further: kinds of captions that were added later."""
        errors: dict[int, Exception] = {}
        for of, member in enumerate(further_names(field.name, further)):
            part = captions.of == of
            errors |= self.read_field(shard, field, member, indexes[part], rows[part], captions.number[part])
        return errors

    def read_field(
        self,
        shard: OpenShard,
        field: Field,
        member: str,
        indexes: I64,
        rows: I64,
        captions: I64 | None = None,
    ) -> dict[int, Exception]:
        """Rows of a shard's table to indexes of the batch: one system call, header compared, data in its final place.

        The errors of rows are returned, by index. captions: of a text field, the number of each sample's.
        """
        if captions is not None:
            told = self._read_captions(shard, field, member, indexes, rows, captions)
            if told is not None:
                return told
        errors: dict[int, Exception] = {}
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
        return errors

    def _read_captions(
        self,
        shard: OpenShard,
        field: Field,
        member: str,
        indexes: I64,
        rows: I64,
        captions: I64,
    ) -> dict[int, Exception] | None:
        """Read one caption of each member of a text field that holds several, as `read_field` does; nothing else of them is read.

        captions: the number of each sample's. None where a member of this shard is one caption's.
        """
        errors: dict[int, Exception] = {}
        table = shard.table
        parts = table.derived(f"parts {member}", lambda: CaptionPlaces.of(table, member))
        if parts is None:
            return None
        begin, end, total = parts.find(table.rows[rows], captions)
        bytes_of = known_axes(field)[-1] * np.dtype(stored_dtype(field.dtype)).itemsize
        header = table.size[member][rows] - total * bytes_of
        fits = (header % 64 == 0) & (header > 0) & (header <= LONGEST_HEADER) & (end > begin)
        starts = table.offset[member][rows] + header + begin * bytes_of
        sizes = (end - begin) * bytes_of
        self.counts["bytes"] += int(sizes[fits].sum())
        tar, array = shard.descriptor(member), self.arrays.get(field.name)
        length = 0 if array is None else array[0].numel() * array.element_size()
        target = None if array is None else memoryview(array.numpy().data).cast("B")
        plain = field.dtype in ("float16", "bfloat16")
        for index, start, size, fit in zip(
            indexes.tolist(), starts.tolist(), sizes.tolist(), fits.tolist(), strict=True
        ):
            try:
                if target is not None and fit and plain and size == length:
                    if os.preadv(tar, [target[index * length : (index + 1) * length]], start) != size:
                        raise FormatError(f"{field.member} ends early")
                    continue
                if not fit:
                    raise FormatError(f"{field.member} does not hold the captions that the sidecar says")
                value = _read_rows(tar, start, size, field)
                if array is not None:
                    array[index] = torch.from_numpy(value)
                else:
                    self.listed[field.name][index] = value
            except (OSError, FormatError, RuntimeError) as error:
                errors[index] = error
        return errors

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


def _read_rows(descriptor: int, start: int, size: int, field: Field) -> Array:
    """Rows of a member's array, in 16 bits a value. Raises FormatError where they end early."""
    data = bytearray(size)
    if os.preadv(descriptor, [data], start) != size:
        raise FormatError(f"{field.member} ends early")
    values = bits16(np.frombuffer(data, np.dtype(stored_dtype(field.dtype)).newbyteorder("<")), field.dtype)
    return values.reshape(-1, known_axes(field)[-1]) if len(field.shape) > 1 else values
