"""A folder whose files were edited, copied or added to between two runs of the same command."""

import gc
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


def as_tar(photos: Path, captions: list[str]) -> None:
    members = [(f"{n}.png", (photos / f"{n}.png").read_bytes()) for n in range(8)]
    members += [(f"{n}.txt", caption.encode()) for n, caption in enumerate(captions)]
    write_tar(photos.with_name("tars") / "0.tar", sorted(members))


def as_parquet(photos: Path, captions: list[str]) -> None:
    photos.with_name("table").mkdir(exist_ok=True)
    images = [{"bytes": (photos / f"{n}.png").read_bytes(), "path": None} for n in range(8)]
    table = datasets.Dataset.from_dict({"image": images, "text": captions}).cast_column(
        "image", datasets.Image()
    )
    table.to_parquet(photos.with_name("table") / "0.parquet")


def as_text(photos: Path, captions: list[str]) -> None:
    for number, caption in enumerate(captions):
        if (path := photos / f"{number}.txt").read_text() != caption:
            path.write_text(caption)


def as_table(photos: Path, captions: list[str]) -> None:
    lines = [f"{number}.png,{caption}" for number, caption in enumerate(captions)]
    (photos / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))


# How it is written, what is edited, and the flags that read it.
READ: dict[str, tuple[Callable[[Path, list[str]], None], str, tuple[str, ...]]] = {
    "prepared": (as_text, "photos/0.txt", ("builders/folder", "--prepare", "--data-dir", "photos")),
    "our webdataset": (as_tar, "tars/0.tar", ("builders/webdataset", "--data-dir", "tars")),
    "imagefolder": (as_table, "photos/metadata.csv", ("imagefolder", "--data-dir", "photos")),
    "webdataset": (as_tar, "tars/0.tar", ("webdataset", "--data-dir", "tars", "--image-column", "png", "--caption-column", "txt")),
    "parquet": (as_parquet, "table/0.parquet", ("table",)),
    "parquet, prepared": (as_parquet, "table/0.parquet", ("table", "--prepare")),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", READ)
def test_whatever_reads_it_an_edit_is_named_and_done_again(
    kind: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Edits that keep a file's size: others' datasets of another size are another source, and refused."""
    write, edited, flags = READ[kind]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    column = ("--caption-column", "text") if "column" not in str(flags) and "builders" not in flags[0] else ()
    options = ("--options", "min_image_size=1") if "builders" in flags[0] else ()
    given = (
        *flags,
        *column,
        *options,
        *TOY,
        "--resolutions",
        "64",
        "--samples-per-shard",
        "4",
        "--output",
        "out",
    )
    was = [f"picture {number}" for number in range(8)]
    write(photos, was)
    assert SAYS not in run_here(monkeypatch, capsys, *given) + run_here(monkeypatch, capsys, *given)
    write(photos, ["pictureS0", *was[1:]])
    later(tmp_path / edited)
    assert f"{SAYS}: {Path(edited).name}" in run_here(monkeypatch, capsys, *given)
    assert "done again" in run_here(monkeypatch, capsys, *given, "--redo-changed")
    assert captions(tmp_path / "out") == sorted(["pictureS0", *was[1:]])
    assert SAYS not in run_here(monkeypatch, capsys, *given, "--redo-changed")
    gc.collect()  # imagefolder leaves its table open


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
    assert "make the layer again, into an empty --output" in capsys.readouterr().err


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
