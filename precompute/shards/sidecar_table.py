"""A sidecar as a whole table, in bounded memory: a few kilobytes of parquet can unpack to terabytes."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from loader.format import FormatError
from loader.parquet_pages import read_columns
from loader.printable import printable

LARGEST = 1 << 29  # bytes in memory, where the file itself is not large: a shard of 4,096 rows has a few MB
TIMES = 20  # its own size, where it is
ROWS = 1024  # at once


def read_sidecar_table(data: bytes) -> pa.Table:
    """All columns and rows. Raises FormatError where it is no parquet, or unpacks to more than is sensible."""
    most = max(LARGEST, TIMES * len(data))
    file = io.BytesIO(data)
    try:
        metadata = pq.read_metadata(file)
        return read_columns(file, metadata, metadata.schema.to_arrow_schema().names, most, ROWS)
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise FormatError(f"unreadable ({printable(str(error).partition(chr(10))[0])})") from error
