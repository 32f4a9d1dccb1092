"""`kill -9` at each change to the output folder in turn, then another process: the tars are those of an undisturbed run."""

import itertools
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from precompute.verify import Config as VerifyConfig
from precompute.verify import verify
from tests.support.launching import leftovers, tars
from tests.support.processes import finish
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.worker import DEAD

STEP = 2  # every so many-th change, from a random one on: all of them take minutes
RETRY: dict[str, Any] = {"retry_rejected": ("undecodable",)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of four rows; the third of each is no image."""
    folder = tmp_path_factory.mktemp("raw")
    for unit in range(2):
        members = []
        for row in range(4):
            image = b"<html>" if row == 2 else jpeg(unit + row, (256, 256))
            members += [(f"{unit}{row}.jpg", image), (f"{unit}{row}.txt", f"caption {row}".encode())]
        write_tar(folder / f"{unit:05d}.tar", members)
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, start: Any) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    finish(start, output, data)
    for marker in output.glob("train-*.json"):
        os.utime(marker, (1e9, 1e9))
    return output


@pytest.mark.parametrize("options", [{}, RETRY], ids=["new", "retry"])
def test_killed_at_any_change_to_the_disk(
    tmp_path: Path, data: Path, undisturbed: Path, start: Any, options: dict[str, Any]
) -> None:
    first = random.SystemRandom().randint(1, STEP)
    print(f"at changes {first}, {first + STEP}, ...")
    output = tmp_path / "out"
    for number in itertools.count(first, STEP):
        if options:
            shutil.copytree(undisturbed, output)
        killed = start(output, data, die_at=number, timeout=1.0, **options)
        killed.join(timeout=300)
        finish(start, output, data, timeout=1.0, **options)
        assert tars(output) == tars(undisturbed), number
        for path in [*undisturbed.glob("*.parquet"), undisturbed / "manifest.json"]:
            assert (output / path.name).read_bytes() == path.read_bytes(), number
        assert not leftovers(output), number
        assert not verify(VerifyConfig(str(output))).findings, number
        shutil.rmtree(output)
        if killed.exitcode == 0:
            break
        assert killed.exitcode == DEAD, number
    assert number > 40, "fewer changes than a run makes: they were not seen"
