"""`--options NAME=VALUE` as they are typed: a value becomes what the builder's option is, and decides what is stored."""

import json
from pathlib import Path

import pytest

from tests.support.launching import TOY, run_precompute, tars
from tests.support.raw.photos import png


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1, (640, 576)))
    (folder / "a.txt").write_text("one that is shrunk")
    return folder


def test_a_picture_is_shrunk_without_loss_where_it_is_asked_for(photos: Path, tmp_path: Path) -> None:
    def made(value: str) -> tuple[dict[str, bytes], object]:
        output = tmp_path / value
        flags = ["--data-dir", photos, *TOY, "--resolutions", "64"]
        run_precompute(
            "builders/folder",
            "--output",
            output,
            *flags,
            "--options",
            "max_image_size=256",
            f"lossless={value}",
        )
        recipe = json.loads((output / "manifest.json").read_text())["recipe"]
        return tars(output), recipe["dataset"]["lossless"]

    (kept, asked), (lost, not_asked) = made("True"), made("False")
    assert asked is True and not_asked is False
    assert len(kept) == len(lost) == 1 and kept != lost


def test_a_value_that_is_none_is_one_line(photos: Path, tmp_path: Path) -> None:
    flags = ["--data-dir", photos, *TOY, "--options", "lossless=maybe"]
    done = run_precompute("builders/folder", "--output", tmp_path / "out", *flags, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert (
        done.stderr.startswith("error: ")
        and "lossless='maybe'" in done.stderr
        and "give True or False" in done.stderr
    )
