"""A stranger's parquet read in bounded memory: by what its pages hold, whatever its footer says of them.

The footer's sizes are claims. Arrow allocates what each page's own header names, 2 GiB at most, for so many values as that says, and a
dictionary of one long text repeats it for every row in a few bytes. So headers are read before Arrow reads them, and texts stay
dictionaries until their whole length is known.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from loader.border import FormatError

__all__ = ["read_columns"]

_VALUE = 8  # bytes in memory of a value and its levels, at least
_DEEPEST = 8  # of structs in a page's header: its statistics are the second
_TYPE, _UNPACKED, _PACKED = 1, 2, 3  # the fields that every page's header has
_DATA = (5, 8)  # the fields of a data page's own header, of both versions; its first is the number of values


def read_columns(
    file: Any, metadata: pq.FileMetaData, columns: Sequence[str], most: int, rows: int
) -> pa.Table:
    """Top-level columns, `rows` rows at a time. Raises FormatError where they take more than `most` bytes, Arrow's errors elsewhere."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    chunks = [group.column(n) for group in groups for n in range(group.num_columns)]
    unpacked, repeated = 0, dict[str, int]()
    for chunk in chunks:
        path = chunk.path_in_schema
        if path.partition(".")[0] in columns:
            pages = list(_pages(file, chunk))
            unpacked += sum(size + _VALUE * values for size, values in pages)
            # What it takes if the longest text is repeated for all values.
            if chunk.physical_type == "BYTE_ARRAY" and pages:
                longest = max(size for size, _ in pages) * sum(values for _, values in pages)
                repeated[path] = repeated.get(path, 0) + longest
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
    lengths = pc.binary_length(array.dictionary).cast(pa.int64())
    return int(pc.sum(lengths.take(array.indices)).as_py() or 0) + 4 * len(array)


def _pages(file: Any, chunk: Any) -> Iterator[tuple[int, int]]:
    """The unpacked bytes and the number of values of each page of a column chunk, by its own header, where Arrow finds it."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    file.seek(start)
    data, at = file.read(chunk.total_compressed_size), 0
    while at < len(data):
        try:
            header, at = _struct(data, at, 0)
            inner = next((header[number] for number in _DATA if number in header), {1: 0})
            size, packed, values = header[_UNPACKED], header[_PACKED], inner[1]
        except (IndexError, KeyError, TypeError) as error:
            raise FormatError(f"the header of a page of {chunk.path_in_schema} is damaged") from error
        if not (isinstance(size, int) and isinstance(packed, int) and isinstance(values, int)):
            raise FormatError(f"the header of a page of {chunk.path_in_schema} is damaged")
        if min(size, packed, values) < 0:
            raise FormatError(f"a page of {chunk.path_in_schema} has less than nothing")
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
    """A value of Thrift's compact type `kind`, and where it ends: truth, numbers, bytes, structs; the others are in no page's header."""
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        number, at = _varint(data, at)
        return number >> 1 ^ -(number & 1), at
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12:
        return _struct(data, at, depth + 1)
    raise KeyError("a kind of field that no page has")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while (byte := data[at]) & 128 and shift < 63:
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
    return number | byte << shift, at + 1
