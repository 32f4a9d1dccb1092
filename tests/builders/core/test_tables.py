"""Tables as other programs write them: every dialect of Python's csv writer, sheets of Excel, JSON lines with CRLF and blank lines."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.core.errors import ConfigError
from builders.core.tables import read_table

CAPTIONS = ["a cat", "one, two; three\tfour", 'she said "hi"', "two\nlines", "図書館", "; ", "it's"]
ROWS = [{"file_name": f"{n}.jpg", "caption": caption} for n, caption in enumerate(CAPTIONS)]
DIALECTS = itertools.product(
    ",;\t", ["\n", "\r\n"], [csv.QUOTE_MINIMAL, csv.QUOTE_ALL], ["utf-8", "utf-8-sig", "utf-16"]
)


@pytest.mark.parametrize(("delimiter", "end", "quoting", "encoding"), DIALECTS)
def test_a_csv_of_any_dialect_is_what_was_written(
    delimiter: str, end: str, quoting: Any, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "metadata.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(
            file, ["file_name", "caption"], delimiter=delimiter, lineterminator=end, quoting=quoting
        )
        writer.writeheader()
        writer.writerows(ROWS)
        file.write(end)
    assert list(read_table(str(path))) == ROWS


def test_spaces_behind_a_comma_are_no_part_of_a_field(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('file_name, caption\na.jpg, "one, two"\n')
    assert list(read_table(str(tmp_path / "metadata.csv"))) == [{"file_name": "a.jpg", "caption": "one, two"}]


@pytest.mark.parametrize(("delimiter", "sign"), [(",", "a comma"), (";", "a semicolon"), ("\t", "a tab")])
def test_a_row_that_does_not_fit_says_which_sign_to_quote(delimiter: str, sign: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text(delimiter.join(["file_name", "caption"]) + "\n" + delimiter.join(["a.jpg", "one", "two"]))
    with pytest.raises(ConfigError, match=rf"line 2 has 3 fields, the header 2.*{sign} is written"):
        list(read_table(str(path)))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n", "\r\n \r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_lines_with_any_line_ends(end: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_bytes(end.join(json.dumps(row) for row in ROWS).encode(encoding))
    assert list(read_table(str(path))) == ROWS


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_two_columns_of_one_name_are_an_error_and_none_is_lost(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"metadata.{kind}"
    names, values = ["file_name", "caption", "caption"], ["a.jpg", "one", "two"]
    if kind == "csv":
        path.write_text(",".join(names) + "\n" + ",".join(values))
    else:
        pq.write_table(pa.Table.from_arrays([pa.array([value]) for value in values], names=names), path)
    with pytest.raises(ConfigError, match=r"metadata.*2 columns are called caption"):
        list(read_table(str(path)))


def test_columns_without_a_name_are_nobodys(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,caption,,\na.jpg,one,,\n")
    assert [row["caption"] for row in read_table(str(tmp_path / "metadata.csv"))] == ["one"]
