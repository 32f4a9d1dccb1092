"""The bar says how long it takes before the first unit is done, of layers and of datasets of others too; held through the command."""

import re
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from precompute import run
from precompute.runtime import progress
from tests.support.launching import TOY
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

ROWS = 24


def photos() -> list[bytes]:
    return [jpeg(number, (320, 320)) for number in range(ROWS)]


def as_tar(folder: Path) -> None:
    members = [(f"{n:02d}.jpg", image) for n, image in enumerate(photos())]
    members += [(f"{n:02d}.txt", f"picture {n}".encode()) for n in range(ROWS)]
    write_tar(folder / "0.tar", sorted(members))


def as_parquet(folder: Path) -> None:
    folder.mkdir()
    images = [{"bytes": image, "path": None} for image in photos()]
    rows = datasets.Dataset.from_dict({"image": images, "caption": [f"picture {n}" for n in range(ROWS)]})
    rows.cast_column("image", datasets.Image()).to_parquet(folder / "0.parquet")


def published(folder: Path) -> None:
    """A dataset on the Hub as `push_to_hub` describes it."""
    as_parquet(folder)
    info = f"dataset_info:\n  splits:\n  - name: train\n    num_bytes: 1\n    num_examples: {ROWS}\n"
    (folder / "README.md").write_text(f"---\n{info}---\n")


def layer(folder: Path) -> None:
    as_tar(folder)
    run.run(run.Config("builders/webdataset", folder / "base", data_dir=folder, vae="toy", text_encoder=("toy",),
        dtype="float32", resolutions=(64,), options=("min_image_size=1",)))  # fmt: skip


# How it is written, what reads it, and whether the rows are known rather than estimated by the sizes of files.
SOURCES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], bool]] = {
    "webdataset": (as_tar, ("webdataset", "--data-dir", "raw", "--image-column", "jpg", "--caption-column", "txt"), False),
    "parquet": (as_parquet, ("raw",), False),
    "published": (published, ("raw",), True),
    "layer": (layer, ("--beside", "raw/base", "--text-encoder", "more=toy"), True),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_one_unit_has_an_end_in_sight_from_its_first_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, flags, is_known = SOURCES[kind]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "raw")
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
    models = TOY if kind != "layer" else TOY[-4:]
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["run.py", *flags, *models, "--resolutions", "64", "--output", "out"])
    run.main()
    first = next(line for line in capsys.readouterr().err.split("\r") if "images" in line)
    found = re.match(r"(\d+)/(~?)(\d+) images, \d\d:\d\d left, ", first)
    assert found and int(found[1]) < ROWS, first
    assert int(found[3]) == ROWS if is_known else 0.7 * ROWS < int(found[3]) < 1.5 * ROWS, first
    assert bool(found[2]) is not is_known
