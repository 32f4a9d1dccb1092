"""Annotations on disk: found by name, built once whoever comes first, never from an older source, in flat memory."""

import importlib
import json
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from builders.core.annotation_db import OTHERS, count_others, open_join, sort_by_name
from builders.core.errors import AnnotationError, DiskFullError
from tests.builders.conftest import Build
from tests.support.mutations import mutated, mutated_json
from tests.support.raw.archive import write_zip

ROWS = [
    ("1", "b", {"x": 1}),
    ("2", "a", None),
    ("1", "a", "é"),
    ("1", "b", "second of a name"),
    ("1", "nan", [float("nan")]),
]


def test_rows_are_found_by_part_and_name(tmp_path: Path) -> None:
    join = open_join(str(tmp_path), "table", "one", lambda: ROWS)
    assert (
        join.get("1", "b") == {"x": 1}
        and join.get("1", "a") == "é"
        and join.get("1", "nan")[0] != join.get("1", "nan")[0]
    )
    assert join.get("2", "b") is None and join.get("3", "a") is None
    assert [name for name, _ in join.items("1")] == ["a", "b", "b", "nan"] and dict(join.items("2")) == {
        "a": None
    }


def test_a_join_is_built_once_and_another_identity_is_another(tmp_path: Path) -> None:
    def never() -> NoReturn:
        raise AssertionError("built again")

    open_join(str(tmp_path), "table", "one", lambda: ROWS)
    assert open_join(str(tmp_path), "table", "one", never).get("1", "a") == "é"
    assert open_join(str(tmp_path), "table", "two", lambda: [("1", "a", "other")]).get("1", "a") == "other"


def test_a_build_that_died_is_begun_again(tmp_path: Path) -> None:
    def dies() -> Iterator[Any]:
        yield ROWS[0]
        raise OSError(104, "network")

    with pytest.raises(OSError, match="network"):
        open_join(str(tmp_path), "table", "one", dies)
    assert not list(tmp_path.glob("*.sqlite"))
    assert open_join(str(tmp_path), "table", "one", lambda: ROWS).get("1", "a") == "é"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "error", [ValueError("no JSON"), EOFError("cut"), KeyError("image_id"), TypeError("a list")]
)
def test_a_table_that_makes_no_sense_is_named(tmp_path: Path, error: Any) -> None:
    def rows() -> Iterator[Any]:
        yield ROWS[0]
        raise error

    with pytest.raises(AnnotationError, match=r"table: its annotations cannot be read.*Fetch it again"):
        open_join(str(tmp_path), "table", "one", rows)
    assert not list(tmp_path.glob("*.sqlite"))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    def rows() -> Iterator[Any]:
        yield ROWS[0]
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(DiskFullError, match=r"disk is full.*Make room, or set cache_dir="):
        open_join(str(tmp_path), "table", "one", rows)


def test_rows_in_any_order_come_sorted_by_name_and_rank() -> None:
    rows = [
        ("b", 2, "late"),
        ("a", 9, "x"),
        ("b", None, "first"),
        ("a", 9, "same rank, later"),
        ("b", 1, "early"),
    ]
    assert list(sort_by_name(rows)) == [
        ("a", [(9, "x"), (9, "same rank, later")]),
        ("b", [(None, "first"), (1, "early"), (2, "late")]),
    ]


def test_rows_of_parts_that_are_not_read_are_counted(tmp_path: Path) -> None:
    join = open_join(str(tmp_path), "table", "one", lambda: [*ROWS, (OTHERS, "", 7)])
    assert join.counts() == {"1": 4, "2": 1, OTHERS: 1}
    assert [count_others(join, read) for read in (set(), {"1"}, {"1", "2"}, {"3"})] == [12, 8, 7, 12]


def _rows_that_count(folder: Any) -> Any:
    with open(os.path.join(folder, f"built-{os.getpid()}"), "w"):
        pass
    return ROWS


def _open(folder: Any) -> Any:
    return open_join(folder, "table", "shared", lambda: _rows_that_count(folder)).get("1", "a")


def test_processes_build_it_once_between_them(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_open, [str(tmp_path)] * 4) == ["é"] * 4
    assert len(list(tmp_path.glob("built-*"))) == 1


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    code = """
import sys
from builders.core.annotation_db import open_join
count = int(sys.argv[2])
rows = (("", f"sa_{i * 7919 % count}", "The image features a man beside a bicycle on a street. " * 5) for i in range(count))
assert open_join(sys.argv[1], "table", str(count), lambda: rows).get("", "sa_3")
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
    root = Path(__file__).resolve().parents[3]
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", code, str(tmp_path), str(count)],
                check=True,
                capture_output=True,
                cwd=root,
            ).stdout
        )
        for count in (5_000, 100_000)
    ]
    assert peaks[1] - peaks[0] < 8 * 1024, f"KiB: {peaks}; the rows alone are 28 MB"


@pytest.mark.parametrize("name", ["coco", "textcaps"])
def test_damaged_annotations_are_rows_or_an_error_that_names_their_file(
    name: str, build: Build, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    importlib.import_module(f"tests.support.raw.{name}").make(tmp_path / "raw")
    path = (
        tmp_path / "raw" / ("TextCaps_0.1_val.json" if name == "textcaps" else "annotations_trainval2014.zip")
    )
    files = {"": path.read_bytes()}
    if name == "coco":
        with zipfile.ZipFile(path) as archive:
            files = {member: archive.read(member) for member in archive.namelist()}
    target = next(member for member in files if not member or "captions_val2014" in member)
    whole, told = files[target], 0
    for seed in range(count := 200):
        by_value = mutated_json(json.loads(whole), random.Random(seed))
        files[target] = by_value if seed % 2 else mutated(whole, seed)
        if target:
            write_zip(path, files.items())
        else:
            path.write_bytes(files[target])
        try:
            build(
                name, split="validation", data_dir=str(tmp_path / "raw"), streaming=True, keep_rejected=True
            )
        except AnnotationError as error:
            assert path.name in str(error)
            told += 1
    assert 0 < told < count
