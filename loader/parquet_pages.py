"""A stranger's parquet read in bounded memory: by what its pages hold, whatever its footer says of them.

The footer's sizes are claims. Arrow allocates what each page's own header names, 2 GiB at most, for so many values as that says, and a
dictionary of one long text repeats it for every row in a few bytes. So headers are read before Arrow reads them, and texts stay
dictionaries until their whole length is known.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from loader.border import FormatError

__all__ = ["read_columns"]

_VALUE = 8  # bytes in memory of a value and its levels, at least
_DEEPEST = 8  # of structs in each other: a column's statistics are the fifth
_TYPE, _UNPACKED, _PACKED = 1, 2, 3  # the fields that every page's header has
_DATA = (5, 8)  # the fields of a data page's own header, of both versions; its first is the number of values
# The fields on the way from a footer to its column chunks, and those of a chunk.
_GROUPS, _COLUMNS, _META = 4, 1, 3
_PHYSICAL, _PATH, _LENGTH, _DATA_PAGE, _DICTIONARY_PAGE = 1, 3, 7, 9, 11
_BYTE_ARRAY = 6


class _Chunk(NamedTuple):
    """A column of a row group. start, length: of its pages, in bytes."""

    path: str
    start: int
    length: int
    is_text: bool


def read_columns(
    file: Any, metadata: pq.FileMetaData, columns: Sequence[str], most: int, rows: int
) -> pa.Table:
    """Top-level columns, `rows` rows at a time. Raises FormatError where they take more than `most` bytes, Arrow's errors elsewhere."""
    if not metadata.num_rows:  # there are no pages: the footer's offsets are 0
        arrow = metadata.schema.to_arrow_schema()
        return pa.Table.from_batches([], schema=pa.schema([arrow.field(name) for name in columns]))
    unpacked, repeated = 0, dict[str, int]()
    for chunk in _chunks(file):
        if chunk.path.partition(".")[0] in columns:
            pages = list(_pages(file, chunk))
            unpacked += sum(size + _VALUE * values for size, values in pages)
            # What it takes if the longest text is repeated for all values.
            if chunk.is_text and pages:
                longest = max(size for size, _ in pages) * sum(values for _, values in pages)
                repeated[chunk.path] = repeated.get(chunk.path, 0) + longest
    if unpacked > most:
        raise FormatError(f"it unpacks to more than {most:,} bytes")
    texts, left = [], most
    for path in sorted(repeated, key=repeated.__getitem__):
        left -= repeated[path]
        if left < 0:
            texts.append(path)
    file.seek(0)
    read, total, schema = [], 0, None
    with pq.ParquetFile(file, metadata=metadata, read_dictionary=texts) as parquet:
        schema = pa.schema([metadata.schema.to_arrow_schema().field(name) for name in columns])
        for batch in parquet.iter_batches(rows, columns=list(columns), use_threads=False):
            batch.validate(full=True)
            total += sum(map(_plain_size, batch.columns))
            if total > most:
                raise FormatError(f"it unpacks to more than {most:,} bytes")
            read.append(batch.cast(schema) if texts else batch)
    return pa.Table.from_batches(read, schema=schema)


def _plain_size(array: Any) -> int:
    """Bytes of a column's values once no dictionary stands for them."""
    while pa.types.is_list(array.type):
        array = array.flatten()
    if not pa.types.is_dictionary(array.type):
        return int(array.nbytes)
    import pyarrow.compute as pc  # not at the top: it takes a tenth of a second, before the first batch

    lengths = pc.binary_length(array.dictionary).cast(pa.int64())
    return int(pc.sum(lengths.take(array.indices)).as_py() or 0) + 4 * len(array)


def _chunks(file: Any) -> list[_Chunk]:
    """The column chunks that the footer lists. It is parsed here: of a damaged one, pyarrow's own way to a column ends the process."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - 8 - length))
    try:
        footer, _ = _struct(file.read(length), 0, 0)
        listed = [column[_META] for group in footer[_GROUPS] for column in group[_COLUMNS]]
        chunks = [
            _Chunk(
                b".".join(meta[_PATH]).decode(),
                min(meta[_DATA_PAGE], meta.get(_DICTIONARY_PAGE) or meta[_DATA_PAGE]),
                meta[_LENGTH],
                meta[_PHYSICAL] == _BYTE_ARRAY,
            )
            for meta in listed
        ]
        if any(chunk.start < 0 or chunk.length < 0 or chunk.start > size for chunk in chunks):
            raise KeyError
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise FormatError("its footer is damaged") from error
    return chunks


def _pages(file: Any, chunk: _Chunk) -> Iterator[tuple[int, int]]:
    """The unpacked bytes and the number of values of each page of a column chunk, by its own header, where Arrow finds it."""
    file.seek(chunk.start)
    data, at = file.read(chunk.length), 0
    while at < len(data):
        try:
            header, at = _struct(data, at, 0)
            inner = next((header[number] for number in _DATA if number in header), {1: 0})
            size, packed, values = header[_UNPACKED], header[_PACKED], inner[1]
        except (IndexError, KeyError, TypeError) as error:
            raise FormatError(f"the header of a page of {chunk.path} is damaged") from error
        if not (isinstance(size, int) and isinstance(packed, int) and isinstance(values, int)):
            raise FormatError(f"the header of a page of {chunk.path} is damaged")
        if min(size, packed, values) < 0:
            raise FormatError(f"a page of {chunk.path} has less than nothing")
        yield size, values
        at += packed


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct in Thrift's compact protocol, and where it ends. Fields ascend, as every writer has them."""
    if depth > _DEEPEST:
        raise IndexError
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        if not head >> 4:
            raise KeyError("a field out of order")
        number += head >> 4
        fields[number], at = _value(data, at + 1, head & 15, depth)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """A value of Thrift's compact type `kind`, and where it ends: truth, numbers, bytes, lists, structs; parquet has no others."""
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        number, at = _varint(data, at)
        return number >> 1 ^ -(number & 1), at
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return data[at : at + length], at + length
    if kind == 9:
        return _list(data, at, depth)
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise KeyError("a kind of field that parquet does not have")


def _list(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    head, at = data[at], at + 1
    count, kind, values = head >> 4, head & 15, list[Any]()
    if count == 15:
        count, at = _varint(data, at)
    for _ in range(count):
        # Here, and nowhere else, truth takes a byte.
        value, at = (data[at], at + 1) if kind in (1, 2) else _value(data, at, kind, depth)
        values.append(value)
    return values, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[at]) & 128 and shift < 63:
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
    return number | byte << shift, at + 1
