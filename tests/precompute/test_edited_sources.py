"""A folder whose files were edited, copied or added to between two runs of the same command."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loader import make_loader
from tests.support.launching import TOY, run_here

Run = Callable[..., str]
SAYS = "changed since they were encoded"


def save(folder: Path, name: str, seed: int, caption: str) -> None:
    folder.mkdir(exist_ok=True)
    small = np.random.RandomState(seed).randint(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(caption)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(8):
        save(tmp_path / "photos", str(number), number, f"picture {number}")
    return tmp_path / "photos"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(photos: Path, output: Path, *flags: str) -> str:
        given = ("builders/folder", "--data-dir", photos, "--output", output, *TOY, "--resolutions", "64")
        return run_here(monkeypatch, capsys, *given, "--options", "min_image_size=1", *flags)

    return call


def captions(*outputs: Path) -> list[str]:
    loader = make_loader(list(outputs), 1, resolution=64, extras=["caption"])
    return sorted(caption for batch in loader for caption in batch["caption"])


def later(path: Path) -> None:
    """As an editor leaves it: a time after all others."""
    os.utime(path, ns=(os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns + 5_000_000_000))


def test_edited_files_are_named_and_only_their_units_are_done_again(
    photos: Path, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "out"
    assert SAYS not in run(photos, output) + run(photos, output)
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert len(before) > 2
    (photos / "0.txt").write_text("something else")
    save(photos, "1", 77, "picture 1")
    later(photos / "0.txt"), later(photos / "1.png")
    said = run(photos, output)
    assert f"{SAYS}: 0.txt" in said and "1.png" in said and "--redo-changed" in said
    assert "something else" not in captions(output)
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")} == before
    said = run(photos, output, "--redo-changed")
    assert "done again" in said and "something else" in captions(output)
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert after.keys() == before.keys() and 0 < sum(after[name] != before[name] for name in after) < len(
        after
    )
    assert SAYS not in run(photos, output, "--redo-changed")


def test_a_table_of_captions_is_a_source_too(tmp_path: Path, run: Run) -> None:
    save(tmp_path / "photos", "0", 0, "")
    photos, output = tmp_path / "photos", tmp_path / "out"
    (photos / "0.txt").unlink()
    (photos / "metadata.csv").write_text("file_name,caption\n0.png,first\n")
    run(photos, output)
    (photos / "metadata.csv").write_text("file_name,caption\n0.png,other\n")
    later(photos / "metadata.csv")
    assert f"{SAYS}: metadata.csv" in run(photos, output)
    run(photos, output, "--redo-changed")
    assert captions(output) == ["other"]


def test_a_copy_of_the_folder_is_no_other_source(photos: Path, tmp_path: Path, run: Run) -> None:
    run(photos, tmp_path / "out")
    shutil.copytree(photos, tmp_path / "same")
    assert SAYS not in run(tmp_path / "same", tmp_path / "out"), "copytree keeps the times"
    for path in (tmp_path / "same").iterdir():
        later(path)
    said = run(tmp_path / "same", tmp_path / "out")
    assert SAYS in said and "finished before" in said, "told, and not refused"


def test_a_folder_that_grew_goes_on_in_a_second_one(
    photos: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos, tmp_path / "out")
    save(photos, "new", 9, "a new picture")
    with pytest.raises(SystemExit):
        run(photos, tmp_path / "out")
    error = capsys.readouterr().err
    assert "plan." in error and "second --output" in error and "make_loader([OUT, OUT2]" in error
    save(tmp_path / "added", "new", 9, "a new picture")
    run(tmp_path / "added", tmp_path / "out2")
    assert captions(tmp_path / "out", tmp_path / "out2") == sorted(
        ["a new picture", *(f"picture {n}" for n in range(8))]
    )
