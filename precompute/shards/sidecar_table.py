"""A sidecar as a whole table, in bounded memory: a few kilobytes of parquet can unpack to terabytes."""

import pyarrow as pa
import pyarrow.parquet as pq

from loader.format import FormatError
from loader.printable import printable

LARGEST = 1 << 29  # bytes in memory, where the file itself is not large: a shard of 4,096 rows has a few MB
TIMES = 20  # its own size, where it is
ROWS = 1024  # at once


def read_sidecar_table(data: bytes) -> pa.Table:
    """All columns and rows. Raises FormatError where it is no parquet, or unpacks to more than is sensible."""
    most = max(LARGEST, TIMES * len(data))
    batches, total = [], 0
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            metadata = parquet.metadata
            total = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
            if total <= most:
                total = 0
                for batch in parquet.iter_batches(ROWS, use_threads=False):
                    total += batch.nbytes
                    if total > most:
                        break
                    batches.append(batch)
            schema = parquet.schema_arrow
    except (pa.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise FormatError(f"unreadable ({printable(str(error).partition(chr(10))[0])})") from error
    if total > most:
        raise FormatError(f"it unpacks to more than {most:,} bytes")
    return pa.Table.from_batches(batches, schema=schema)
