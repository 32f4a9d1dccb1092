"""A folder whose files were edited, copied or added to between two runs of the same command."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from loader import make_loader
from tests.support.batches import all_same
from tests.support.launching import TOY, run_here, tars
from tests.support.raw.archive import write_tar

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
    """Date a file as an editor leaves it: after all others."""
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
    assert "plan." in error and "--data-dir NEW --output" in error and "make_loader([OUT, OUT2]" in error
    save(tmp_path / "added", "new", 9, "a new picture")
    run(tmp_path / "added", tmp_path / "out2")
    assert captions(tmp_path / "out", tmp_path / "out2") == sorted(
        ["a new picture", *(f"picture {n}" for n in range(8))]
    )


HALVES = (range(4), range(4, 8))


def as_tars(photos: Path, captions: list[str]) -> None:
    for half, numbers in enumerate(HALVES):
        members = [(f"{n}.png", (photos / f"{n}.png").read_bytes()) for n in numbers]
        members += [(f"{n}.txt", captions[n].encode()) for n in numbers]
        replace(photos.with_name("tars") / f"{half}.tar", write_tar, sorted(members))


def as_parquets(photos: Path, captions: list[str]) -> None:
    for half, numbers in enumerate(HALVES):
        images = [{"bytes": (photos / f"{n}.png").read_bytes(), "path": None} for n in numbers]
        rows = datasets.Dataset.from_dict({"image": images, "text": [captions[n] for n in numbers]})
        rows = rows.cast_column("image", datasets.Image())
        replace(photos.with_name("table") / f"{half}.parquet", lambda path, rows: rows.to_parquet(path), rows)


def as_lines(photos: Path, captions: list[str]) -> None:
    for half, numbers in enumerate(HALVES):
        rows = [json.dumps({"image": str(photos / f"{n}.png"), "text": captions[n]}) for n in numbers]
        replace(photos.with_name("lines") / f"{half}.jsonl", Path.write_text, "\n".join(rows))


def replace(path: Path, write: Callable[[Path, Any], Any], value: Any) -> None:
    """Write a file where its bytes are others than those that lie there."""
    new = path.with_suffix(".new")
    path.parent.mkdir(exist_ok=True)
    write(new, value)
    if path.exists() and path.read_bytes() == new.read_bytes():
        new.unlink()
    else:
        new.replace(path)


def as_text(photos: Path, captions: list[str]) -> None:
    for number, caption in enumerate(captions):
        if (path := photos / f"{number}.txt").read_text() != caption:
            path.write_text(caption)


def as_table(photos: Path, captions: list[str]) -> None:
    lines = [f"{number}.png,{caption}" for number, caption in enumerate(captions)]
    (photos / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))


PNG, TEXT = ("--image-column", "png", "--caption-column", "txt"), ("--caption-column", "text")
EDITED, EDITED_SAME = "an entirely other caption", "pictureS0"
# How it is written, what is edited and how, the flags that read it, and how many of its units that concerns.
READ: dict[str, tuple[Callable[[Path, list[str]], None], str, str, tuple[str, ...], tuple[int, int]]] = {
    "prepared": (as_text, "photos/0.txt", EDITED, ("builders/folder", "--prepare", "--data-dir", "photos"), (2, 2)),
    "our webdataset": (as_tars, "tars/0.tar", EDITED, ("builders/webdataset", "--data-dir", "tars"), (1, 2)),
    "our webdataset, named": (as_tars, "tars/0.tar", EDITED, ("builders/webdataset", "data_files=tars/*.tar"), (1, 2)),
    "imagefolder": (as_table, "photos/metadata.csv", EDITED, ("imagefolder", "--data-dir", "photos", *TEXT), (1, 1)),
    "webdataset": (as_tars, "tars/0.tar", EDITED, ("webdataset", "--data-dir", "tars", *PNG), (1, 2)),
    "parquet, prepared": (as_parquets, "table/0.parquet", EDITED_SAME, ("table", "--prepare", *TEXT), (2, 2)),
    "parquet, named": (as_parquets, "table/0.parquet", EDITED, ("parquet", "data_files=table/*.parquet", *TEXT), (1, 2)),
    "json, named": (as_lines, "lines/1.jsonl", EDITED, ("json", 'data_files=["lines/0.jsonl", "lines/1.jsonl"]', *TEXT), (1, 2)),
}  # fmt: skip


@pytest.fixture
def read_as(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The command that reads the photographs in one of these ways."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def run(kind: str, *more: str) -> str:
        flags = READ[kind][3]
        options = [flag for flag in flags if flag.startswith("data_files=")]
        options += ["min_image_size=1"] if "builders" in flags[0] else []
        given = [flag for flag in flags if flag not in options] + [*TOY, "--resolutions", "64", *more]
        given += ["--options", *options] if options else []
        return run_here(monkeypatch, capsys, *given, "--samples-per-shard", "4", "--output", "out")

    return run


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", READ)
def test_whatever_reads_it_an_edit_is_named_and_its_units_alone_are_done_again(
    kind: str, photos: Path, tmp_path: Path, read_as: Callable[..., str]
) -> None:
    write, edited, caption, _, (again, units) = READ[kind]
    was = [f"picture {number}" for number in range(8)]
    write(photos, was)
    assert SAYS not in read_as(kind) + read_as(kind)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train-*.json")}
    row = 4 if Path(edited).stem == "1" else 0
    now = [*was[:row], caption, *was[row + 1 :]]
    write(photos, now)
    later(tmp_path / edited)
    assert f"{SAYS}: {Path(edited).name}, in {again} finished unit" in read_as(kind)
    assert "done again" in read_as(kind, "--redo-changed")
    assert captions(tmp_path / "out") == sorted(now)
    assert len(written) == units and again == sum(
        path.stat().st_mtime_ns != written[path] for path in written
    )
    assert SAYS not in read_as(kind, "--redo-changed")
    gc.collect()  # imagefolder leaves its table open


ELSEWHERE = {
    "another split, and the card": (("both",), "both/train-1.parquet", ("both/validation-0.parquet", "both/README.md")),
    "a folder of the format's name": (("parquet", "--options", "data_files=both/train-*.parquet"), "both/train-1.parquet", ("parquet/0.parquet",)),
}  # fmt: skip


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_no_row_of_the_split_is_read_from_is_no_edit(
    kind: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags, edited, others = ELSEWHERE[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    as_parquets(photos, [f"picture {number}" for number in range(8)])
    (tmp_path / "both").mkdir()
    (tmp_path / "parquet").mkdir()
    for half in range(2):
        (tmp_path / "table" / f"{half}.parquet").rename(tmp_path / "both" / f"train-{half}.parquet")
    for other in others:
        shutil.copy(tmp_path / "both" / "train-0.parquet", tmp_path / other)
    if "README.md" in str(others):
        (tmp_path / "both" / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    given = (*flags, *TOY, "--resolutions", "64", *TEXT, "--samples-per-shard", "4", "--output", "out")
    run_here(monkeypatch, capsys, *given)
    for other in others:
        later(tmp_path / other)
    assert SAYS not in run_here(monkeypatch, capsys, *given)
    later(tmp_path / edited)
    assert f"{SAYS}: train-1.parquet, in 1 finished unit" in run_here(monkeypatch, capsys, *given)


@pytest.mark.parametrize("kind", ["parquet, prepared", "parquet, named"])
def test_files_whose_rows_may_have_moved_are_another_source(
    kind: str, photos: Path, tmp_path: Path, read_as: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """They are of another size, where units are ranges of all rows; another one, whatever reads it."""
    was = [f"picture {number}" for number in range(8)]
    as_parquets(photos, was)
    read_as(kind)
    if "prepared" in kind:
        as_parquets(photos, [EDITED, *was[1:]])
    else:
        (tmp_path / "table" / "1.parquet").rename(tmp_path / "table" / "2.parquet")
    with pytest.raises(SystemExit):
        read_as(kind, "--redo-changed")
    assert "plan.sources" in capsys.readouterr().err


def test_a_layer_names_a_picture_that_was_replaced_since(
    photos: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, layer = tmp_path / "base", tmp_path / "layer"
    run(photos, base)
    given = ("builders/folder", "--data-dir", photos, "--options", "min_image_size=1", "--output", layer)
    beside = ("--beside", base, "--vae", "toy", "--resolutions", "32")
    assert SAYS not in run_here(monkeypatch, capsys, *given, *beside)
    save(photos, "1", 77, "picture 1")
    later(photos / "1.png")
    assert f"{SAYS}: 1.png" in run_here(monkeypatch, capsys, *given, *beside)


BESIDE = ("--vae", "toy", "--resolutions", "32")


@pytest.fixture
def run_layer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(photos: Path, base: Path, output: Path, *flags: str) -> str:
        given = ("builders/folder", "--data-dir", photos, "--options", "min_image_size=1", *BESIDE)
        return run_here(monkeypatch, capsys, *given, "--beside", base, "--output", output, *flags)

    return call


def batches(base: Path, layer: Path) -> Iterable[Any]:
    return make_loader((base, layer), 1, resolution=32, posterior="mean", extras=["key"])


def retouch(path: Path, bit: int = 64) -> None:
    """Change one bit of one pixel, and keep the size of the file: what is stored changes, and nothing that a sidecar says."""
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= bit
    Image.fromarray(pixels).save(path, compress_level=0)
    later(path)


def test_a_layer_is_refused_where_a_picture_was_replaced_since_its_base_was_made(
    photos: Path, tmp_path: Path, run: Run, run_layer: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    base, layer = tmp_path / "base", tmp_path / "layer"
    run(photos, base)
    save(photos, "1", 77, "picture 1")
    later(photos / "1.png")
    with pytest.raises(SystemExit):
        run_layer(photos, base, layer)
    told = capsys.readouterr().err
    assert "--beside" in told and "since it was made: 1.png" in told and "--redo-changed" in told
    assert not list(layer.glob("*.tar"))
    # What it says helps.
    assert "done again" in run(photos, base, "--redo-changed")
    assert "since" not in run_layer(photos, base, layer)
    run(photos, tmp_path / "base2")
    run_layer(photos, tmp_path / "base2", tmp_path / "layer2")
    assert all_same(batches(base, layer), batches(tmp_path / "base2", tmp_path / "layer2"))


def test_redo_changed_of_a_layer_waits_for_that_of_its_base(
    photos: Path, tmp_path: Path, run: Run, run_layer: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    base, layer = tmp_path / "base", tmp_path / "layer"
    run(photos, base)
    run_layer(photos, base, layer)
    before = tars(layer)
    save(photos, "1", 77, "picture 1")
    later(photos / "1.png")
    with pytest.raises(SystemExit):
        run_layer(photos, base, layer, "--redo-changed")
    assert "since it was made: 1.png" in capsys.readouterr().err and tars(layer) == before
    assert f"{SAYS}: 1.png" in run_layer(photos, base, layer), "what is finished is of one time"
    run(photos, base, "--redo-changed")
    with pytest.raises(SystemExit):
        run_layer(photos, base, layer, "--redo-changed")
    assert "make the layer again, with another output: " in capsys.readouterr().err


def test_redo_changed_does_the_units_of_a_layer_again_beside_a_base_of_the_same_rows(
    photos: Path, tmp_path: Path, run: Run, run_layer: Run
) -> None:
    base, layer = tmp_path / "base", tmp_path / "layer"
    retouch(photos / "1.png", bit=0)
    run(photos, base)
    run_layer(photos, base, layer)
    before = tars(layer)
    size = (photos / "1.png").stat().st_size
    retouch(photos / "1.png")
    assert (photos / "1.png").stat().st_size == size
    assert "done again" in run(photos, base, "--redo-changed")
    said = run_layer(photos, base, layer, "--redo-changed")
    assert f"{SAYS}: 1.png" in said and "done again" in said
    after = tars(layer)
    assert after.keys() == before.keys() and sum(after[name] != before[name] for name in after) == 1
    run(photos, tmp_path / "base2")
    run_layer(photos, tmp_path / "base2", tmp_path / "layer2")
    assert all_same(batches(base, layer), batches(tmp_path / "base2", tmp_path / "layer2"))


def test_a_copy_of_the_source_is_told_of_and_serves_a_layer(
    photos: Path, tmp_path: Path, run: Run, run_layer: Run
) -> None:
    run(photos, tmp_path / "base")
    for path in photos.iterdir():
        later(path)
    assert "taken to be the same" in run_layer(photos, tmp_path / "base", tmp_path / "layer")


def test_a_base_whose_markers_cannot_be_read_is_not_taken_to_agree(
    photos: Path, tmp_path: Path, run: Run, run_layer: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is not there, as on the Hub of another version, says nothing, and is passed over."""
    base, layer = tmp_path / "base", tmp_path / "layer"
    run(photos, base)
    marker = next(base.glob("train-*.json"))
    whole = marker.read_bytes()
    marker.write_bytes(whole[:50])
    with pytest.raises(SystemExit):
        run_layer(photos, base, layer)
    assert f"--beside {base}: {marker.name} is damaged" in capsys.readouterr().err
    assert not list(layer.glob("*.tar"))
    marker.unlink()
    run_layer(photos, base, layer)
    assert list(layer.glob("*.tar"))
