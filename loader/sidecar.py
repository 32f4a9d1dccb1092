"""Where each member of each sample lies in its tar, as the shard's parquet says it: checked before it is believed.

Read in small batches of rows, so that memory follows what was read and not what a stranger's file claims.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from loader.format import FormatError
from loader.parquet_pages import read_columns
from loader.printable import printable
from loader.sidecar_schema import PHASH, described_columns, sidecar_schema

I64 = npt.NDArray[np.int64]
Derived = TypeVar("Derived")

NUMBERS = pa.list_(pa.int32())
COLUMNS, DESCRIBED = sidecar_schema([]), {*described_columns([]), PHASH}

LARGEST_TABLE = 1 << 29  # bytes in memory of the columns that are read: a shard of 4,096 rows has a few MB
ROWS = 16384  # decoded at a time
_KEYS = re.compile(r"(?:[A-Za-z0-9_-]{1,500}\n)*")


@dataclass(frozen=True)
class Table:
    """The samples of one shard. offset, size: of member M of each, in bytes. keys: of all rows, as an Arrow column.

    rows: which rows the samples are. columns: further ones by name, as keys is.
    """

    offset: dict[str, I64]
    size: dict[str, I64]
    rows: I64
    keys: Any
    columns: Mapping[str, Any] = field(default_factory=dict)
    _derived: dict[str, Any] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, samples: I64) -> "Table":
        """These samples, by their numbers, in this order."""
        return replace(
            self,
            offset={member: values[samples] for member, values in self.offset.items()},
            size={member: values[samples] for member, values in self.size.items()},
            rows=self.rows[samples],
        )

    def key(self, sample: int) -> str:
        return str(self.keys[int(self.rows[sample])])

    def value(self, column: str, sample: int) -> Any:
        """What a further column says of a sample."""
        return self.columns[column][int(self.rows[sample])].as_py()

    def derived(self, name: str, make: Callable[[], Derived]) -> Derived:
        """What is made of the columns once, for as long as the table is kept; the same for any choice of the samples."""
        if name not in self._derived:
            self._derived[name] = make()
        found: Derived = self._derived[name]
        return found


def ragged(table: Table, column: str) -> tuple[I64, npt.NDArray[Any]]:
    """A column of lists as the number of the first value of each row, and of the end, and all values."""

    def make() -> tuple[I64, npt.NDArray[Any]]:
        lists = [row or [] for row in table.columns[column].to_pylist()] if column in table.columns else []
        values = [value for row in lists for value in row]
        first = np.cumsum([0, *map(len, lists)]) if lists else np.zeros(len(table.keys) + 1, np.int64)
        return first, np.array(values, np.int64 if column_type(column) == NUMBERS else object)

    return table.derived(f"ragged {column}", make)


def read_sidecar(
    file: Any,
    members: Sequence[str],
    columns: Sequence[str],
    rows: int,
    end: int,
    most: int = LARGEST_TABLE,
) -> Table:
    """The ok rows of a sidecar. rows: that it has; end: bytes of the tar, in which all members lie. columns: further ones.

    Raises OSError where it is no parquet, FormatError where its columns are not those of the contract, claim other rows, places
    outside the tar, or unpack to more than `most` bytes.
    """
    try:
        table = _read(file, members, columns, rows, most)
        ok = np.flatnonzero([status == "ok" for status in table["status"].to_pylist()])
        keys = np.array(table["key"].to_pylist(), object)[ok].tolist()
    except (pa.ArrowException, UnicodeError, MemoryError, OverflowError) as error:
        raise FormatError(printable(error)) from error
    if None in keys or not _KEYS.fullmatch("".join(f"{key}\n" for key in keys)):
        raise FormatError("the sidecar has a key that is not of letters, digits, _ and -")
    places = {
        column: _integers(table[column])[ok]
        for column in table.column_names
        if column.startswith(("offset_", "size_"))
    }
    for column in table.column_names:
        counts = column.startswith(("caption_tokens", "crop_"))
        if counts and any(_has_less_than_zero(chunk.values) for chunk in table[column].chunks):
            raise FormatError(f"the sidecar has a {column} that is less than 0")
    for column, values in places.items():
        if values.min(initial=0) < 0:
            raise FormatError(f"the sidecar has an ok row without {column}")
    for member in members:
        # Not their sum, which may overflow.
        if (places[f"offset_{member}"] > end - np.minimum(places[f"size_{member}"], end + 1)).any():
            raise FormatError(f"the sidecar has a {member} that ends behind the {end} bytes of the tar")
    return Table(
        offset={m: places[f"offset_{m}"] for m in members},
        size={m: places[f"size_{m}"] for m in members},
        rows=ok,
        keys=table["key"],
        columns={column: table[column] for column in columns if column in table.column_names},
    )


def read_ok_rows(file: Any, columns: Sequence[str]) -> Any:
    """Columns of the ok rows, as an Arrow table; `status` has to be one, and is dropped. Raises FormatError."""
    import pyarrow.compute as pc  # not at the top: 0.16 s, before the first batch of whoever needs none of this

    try:
        metadata = pq.read_metadata(file)
        if lacking := sorted(set(columns) - set(metadata.schema.to_arrow_schema().names)):
            raise FormatError(f"it has no column {lacking}")
        table = read_columns(file, metadata, list(columns), LARGEST_TABLE, ROWS)
    except pa.ArrowException as error:
        raise FormatError(printable(error)) from error
    return table.filter(pc.equal(table["status"], "ok")).drop_columns(["status"])


def column_type(name: str) -> Any:
    """The Arrow type of a column of a sidecar; None where it has no such column."""
    for start, kind in (
        ("caption_tokens", NUMBERS),
        ("crop_", NUMBERS),
        ("offset_", pa.int64()),
        ("size_", pa.int64()),
        (PHASH, pa.uint64()),
    ):
        if name.startswith(start):
            return kind
    if name.startswith("captions+"):
        return pa.list_(pa.string())
    return COLUMNS.field(name).type if name in COLUMNS.names else None


def _read(file: Any, members: Sequence[str], further: Sequence[str], rows: int, most: int) -> Any:
    """The columns needed, as an Arrow table; of those that shards from before may lack, those that are there."""
    columns = {name: column_type(name) for name in ("status", "key", *further)}
    columns |= {f"{what}_{m}": pa.int64() for m in members for what in ("offset", "size")}
    with pq.ParquetFile(file) as parquet:
        schema, metadata = parquet.schema_arrow, parquet.metadata
        names = schema.names
        for name in columns.keys() - set(names):
            if name in DESCRIBED or name.startswith(("caption_tokens", "crop_")) or name.endswith("_json"):
                del columns[name]
        if missing := set(columns) - set(names):
            raise FormatError(f"the sidecar has no column {sorted(missing)}")
        for name, kind in columns.items():
            if names.count(name) > 1 or schema.field(name).type != kind:
                raise FormatError(f"the sidecar's column {name} is not one of {kind}")
        if metadata.num_rows != rows:
            raise FormatError(f"the sidecar has {metadata.num_rows} rows, the manifest says {rows}")
    table = read_columns(file, metadata, list(columns), most, ROWS)
    if len(table) != rows:
        raise FormatError(f"the sidecar has {len(table)} rows, the manifest says {rows}")
    return table


def _has_less_than_zero(values: Any) -> bool:
    """Whether one of some int32 values is negative or null."""
    data = values.buffers()[1]
    numbers = np.frombuffer(data, np.int32, len(values), 4 * values.offset) if data else np.empty(0, np.int32)
    return bool(values.null_count or numbers.min(initial=0) < 0)


def _integers(column: Any) -> I64:
    """Values of an int64 column, -1 for null. Arrow's own way imports pandas, a tenth of a second before the first batch."""
    out = []
    for chunk in column.chunks:
        valid, values = chunk.buffers()
        numbers = np.frombuffer(values, np.int64, len(chunk), 8 * chunk.offset)
        if valid is not None:
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
            numbers = np.where(bits[chunk.offset : chunk.offset + len(chunk)], numbers, -1)
        out.append(numbers)
    return np.concatenate([np.empty(0, np.int64), *out])
