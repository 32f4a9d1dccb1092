"""README: archives are read in place and never unpacked. Python's own audit of what is opened is the judge."""

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from precompute import run
from precompute.config import Config
from tests.support.worker import TOY

ARCHIVED = ["coco", "cc12m", "diffusiondb", "journeydb", "sa1b", "webdataset"]
written: list[str] = []
listening = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if (
        listening
        and event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    ):
        written.append(str(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_hook)  # there is no way to take one away: it sleeps outside these tests


@pytest.fixture
def opened_to_write() -> Iterator[list[str]]:
    global listening
    written.clear()
    listening = True
    yield written
    listening = False


def raw(name: str, root: Path) -> dict[str, Any]:
    module = importlib.import_module(f"tests.support.raw.{name}")
    root.mkdir()
    module.make(root)
    return {"data_dir": str(root), **(module.options(root) if hasattr(module, "options") else {})}


@pytest.mark.parametrize("name", ARCHIVED)
def test_a_stream_writes_no_picture(name: str, tmp_path: Path, opened_to_write: list[str]) -> None:
    """But for the database in which annotations are joined, and locks."""
    given = raw(name, tmp_path / "raw")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")}
    opened_to_write.clear()
    rows = datasets.load_dataset(
        f"builders/{name}", split="train", streaming=True, cache_dir=str(tmp_path / "cache"), **given
    )
    sizes = [len(row["image"]["bytes"]) for row in rows.cast_column("image", datasets.Image(decode=False))]
    assert sizes
    wrote = [path for path in opened_to_write if not path.endswith(".lock")]
    assert not [
        path for path in wrote if Path(path).suffix.lower() in (".jpg", ".jpeg", ".png", ".webp", ".arrow")
    ]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")} == before
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in left) < sum(sizes)


def test_a_run_writes_into_its_output_alone(tmp_path: Path, opened_to_write: list[str]) -> None:
    given = raw("webdataset", tmp_path / "raw")
    opened_to_write.clear()
    run.run(Config("builders/webdataset", tmp_path / "out", data_dir=Path(given["data_dir"]), **TOY))
    wrote = {path for path in opened_to_write if path.startswith(str(tmp_path))}
    assert wrote and all(Path(path).is_relative_to(tmp_path / "out") for path in wrote)
    assert not [path for path in wrote if path.endswith((".jpg", ".png"))]
    assert list((tmp_path / "out").glob("*.tar"))
