"""Tables of file names and captions, row by row: CSV, JSON lines or Parquet.

A table is read as it is or not at all: a comma in an unquoted caption would cut it, so a CSV row that does not fit its header is an
error with file and line, as pandas and `datasets`' imagefolder have it. Fields are parted by commas; where the header has none, by
semicolons or tabs.
"""

import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import IO, Any

import pyarrow.parquet

from builders.core import shallow_json
from builders.core.errors import ConfigError
from builders.core.text_file import encoding_of

__all__ = ["column_names", "read_table"]

_SIGNS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
_LONGEST_FIELD = 2**24  # characters of a CSV field


def column_names(path: str) -> list[str]:
    """The columns of a .csv or .parquet; of a .jsonl the names in its first row. Raises ConfigError as `read_table` does."""
    if not path.endswith(".parquet"):
        return list(next(read_table(path), {}))
    try:
        return list(pyarrow.parquet.read_schema(path).names)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise ConfigError(f"{path}: cannot be read as parquet: {error}") from error


def read_table(
    path: str, encoding: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of a .csv, .jsonl or .parquet. Raises ConfigError naming the file, and the line where there is one.

    encoding: of a text without a byte order mark; default UTF-8. columns: those of a Parquet file to read; default all.
    """
    line = 0
    try:
        if path.endswith(".parquet"):
            table = pyarrow.parquet.ParquetFile(path)
            _check_names(table.schema_arrow.names)
            for batch in table.iter_batches(columns=columns):
                yield from batch.to_pylist()
            return
        with open(path, "rb") as raw:
            encoding = encoding_of(raw.read(4), encoding)
        with open(path, encoding=encoding, newline="") as file:
            rows = _csv_rows(file) if path.endswith(".csv") else _json_rows(file)
            for line, row in rows:  # noqa: B007  told of where the next row fails
                yield row
    except UnicodeError as error:
        raise ConfigError(
            f"{path}, behind line {line}: cannot be read as {encoding}: {error}. Name its encoding with caption_encoding=..., "
            "gbk or cp1252 for example"
        ) from error
    except (ValueError, csv.Error, pyarrow.ArrowException, OSError) as error:
        # Of a damaged Parquet file, Arrow says OSError without a number.
        if isinstance(error, ConfigError) or getattr(error, "errno", None) is not None:
            raise
        where = "" if path.endswith(".parquet") else f", behind line {line}"
        raise ConfigError(
            f"{path}{where}: cannot be read as {os.path.splitext(path)[1][1:]}: {error}"
        ) from error


def _csv_rows(file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_FIELD)
    beginning = file.readline()
    # As Excel writes them where the comma is the decimal sign, and what is copied out of a sheet.
    delimiter = next((sign for sign in ",;\t" if sign in beginning), ",")
    reader = csv.reader(chain([beginning], file), delimiter=delimiter, skipinitialspace=True, strict=True)
    header = next(reader, [])
    _check_names(header)
    for row in reader:
        if row and len(row) != len(header):
            raise ValueError(
                f"line {reader.line_num} has {len(row)} fields, the header {len(header)}: {delimiter.join(row):.80}. "
                f"A field with {_SIGNS[delimiter]} is written in double quotes"
            )
        if row:
            yield reader.line_num, dict(zip(header, row, strict=True))


def _check_names(header: Sequence[str]) -> None:
    """Raises ValueError where two columns have one name, of which only one would be read; those without a name are nobody's."""
    for name, count in Counter(header).items():
        if name and count > 1:
            raise ValueError(f"{count} columns are called {name}: rename them")


def _json_rows(file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        row = shallow_json.load(line)
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not an object with file_name and a caption: {line:.60}")
        yield number, row
