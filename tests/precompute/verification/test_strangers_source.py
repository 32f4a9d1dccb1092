"""A hostile dataset against the commands: the pictures of the victim that its recipe names are neither shown nor opened."""

import base64
import ctypes
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loader.format import fingerprint
from precompute import run
from tests.support.forked import run_command

IN_OPEN = 0x20
TOLD = "opened, as the recipe of the shards names it: "


def save_pictures(folder: Path, color: tuple[int, int, int]) -> Path:
    folder.mkdir()
    for name in "abcd":
        Image.new("RGB", (320, 320), color).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"picture {name}")
    return folder


class Watch:
    """Whether anybody opens a folder or what lies in it, as the kernel tells."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._file = libc.inotify_init1(os.O_NONBLOCK)
        assert self._file >= 0 and libc.inotify_add_watch(self._file, os.fsencode(folder), IN_OPEN) >= 0

    def saw(self) -> bool:
        try:
            return bool(os.read(self._file, 1 << 16))
        except BlockingIOError:
            return False
        finally:
            os.close(self._file)


def shows_magenta(page: Path) -> bool:
    pictures = re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", page.read_text())
    assert pictures
    for data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        if (np.abs(pixels - (255, 0, 255)).max(-1) < 24).mean() > 0.1:
            return True
    return False


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of grey pictures whose recipe names a folder of others, magenta, of the same names; that folder."""
    here = tmp_path_factory.mktemp("hostile")
    grey, photos = save_pictures(here / "grey", (90, 90, 90)), save_pictures(here / "photos", (255, 0, 255))
    shards = here / "shards"
    run.run(
        run.Config(
            "builders/folder", shards, data_dir=grey, vae="toy", text_encoder=("toy",), resolutions=(64,)
        )
    )
    for path in [*shards.glob("*.json"), *shards.glob(".*.json")]:
        held = json.loads(path.read_text())
        if "recipe" in held:
            held["recipe"]["dataset"]["data_dir"] = str(photos)
            path.write_text(json.dumps(held | {"fingerprint": fingerprint(held["recipe"])}))
    return shards, photos


@pytest.mark.skipif(sys.platform != "linux", reason="inotify tells who opens what")
@pytest.mark.parametrize("named", [False, True], ids=["by the recipe", "by the user"])
def test_a_picture_is_opened_where_the_user_names_it_alone(
    victim: tuple[Path, Path], tmp_path: Path, named: bool
) -> None:
    shards, photos = victim
    flags = ("--data-dir", photos) if named else ()
    watch = Watch(photos)
    shown = run_command("precompute/preview.py", shards, "--to", tmp_path, *flags)
    assert shown.returncode == 0, shown.stderr
    assert shows_magenta(tmp_path / "report.html") == watch.saw() == named
    assert TOLD not in shown.stderr

    watch = Watch(photos)
    told = run_command("precompute/verify.py", shards, "--decode", "4", *flags)
    assert watch.saw() == named and TOLD not in told.stderr
    assert ("give that yourself to have it opened" in told.stdout) != named


@pytest.mark.parametrize("command", [("precompute/preview.py",), ("precompute/verify.py", "--decode", "2")])
def test_a_published_source_is_opened_and_told_in_one_line(
    demo_shards: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    flags = ("--to", tmp_path) if len(command) == 1 else ()
    done = run_command(command[0], demo_shards, *command[1:], *flags)
    assert done.returncode == 0
    assert done.stderr.count(TOLD) == 1 and f"{TOLD}--source builders/demo, split train\n" in done.stderr
