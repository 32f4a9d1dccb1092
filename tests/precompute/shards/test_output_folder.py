"""The output folder: what is made there is made once, whole, and never through a link that somebody has laid."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precompute.errors import OutputError
from precompute.shards.destination import WORK
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.tar_writer import TarWriter
from precompute.shards.unit_writer import UnitWriter

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and modes are POSIX's")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of somebody else, with names as precompute gives them."""
    folder = tmp_path / "theirs"
    (folder / "train-00000.1-ab").mkdir(parents=True)
    for name in ("tmp-0a", "train-00000.lease-1", "retry-train.unsafe", "train-00000.1-ab/0.tar"):
        (folder / name).write_text("precious")
    return folder


def state(folder: Path) -> dict[str, tuple[str, float]]:
    return {
        str(path.relative_to(folder)): (path.read_text(), path.stat().st_mtime)
        for path in folder.rglob("*")
        if path.is_file()
    }


USES: dict[str, Callable[[OutputFolder], object]] = {
    "create": lambda folder: folder.create("train-00000.lease-1", b"{}"),
    "put": lambda folder: folder.put("manifest.json", b"{}"),
    "controls": lambda folder: folder.controls(),
    "revoke": lambda folder: folder.revoke("train-00000", 2),
    "sweep": lambda folder: folder.close(sweep=True),
    "begin": lambda folder: folder.begin("train-00001", "1-cd"),
    "unit": lambda folder: UnitWriter(folder, 1, ["txt"], 10, "1-cd"),
}


@pytest.mark.parametrize("use", USES)
def test_work_that_is_a_link_is_refused_and_what_lies_behind_it_untouched(
    out: Path, theirs: Path, use: str
) -> None:
    (out / WORK).symlink_to(theirs)
    (out / "train-00000.json").touch()
    before = state(theirs)
    with pytest.raises(OutputError, match=r"--output .*out: \.work in it is a link; remove it"):
        USES[use](OutputFolder(out))
    assert state(theirs) == before


def test_links_among_the_control_files_are_removed_and_not_followed(out: Path, theirs: Path) -> None:
    folder, before = OutputFolder(out), state(theirs)
    (out / WORK).mkdir()
    (out / "train-00000.json").touch()
    for name in ("tmp-0b", "train-00000.1-ab", "train-00000.lease-1"):
        (out / WORK / name).symlink_to(theirs)
    (out / WORK / "train-00001.lease-1").symlink_to(theirs / "tmp-0a")
    assert not folder.create("train-00001.lease-1", b"{}"), "it is there already, whatever it is"
    assert folder.read("train-00001.lease-1") == b""
    folder.touch("train-00001.lease-1")
    folder.close(sweep=True)
    assert os.listdir(out / WORK) == ["train-00001.lease-1"]
    assert state(theirs) == before


def test_finished_files_replace_links_and_temporary_ones_are_not_foretold(out: Path, theirs: Path) -> None:
    precious, before = theirs / "tmp-0a", state(theirs)
    for name in ("manifest.json", "report.html", f".report.html.{os.getpid()}.tmp"):
        (out / name).symlink_to(precious)
    OutputFolder(out).put("manifest.json", b"{}")
    write_file(out / "report.html", b"<html>")
    assert state(theirs) == before
    for name in ("manifest.json", "report.html"):
        assert not (out / name).is_symlink()
        assert (out / name).stat().st_mode & 0o022 == 0, "nobody else writes to it"


def test_tar_is_written_to_a_new_file_only(out: Path, theirs: Path) -> None:
    (out / "0.tar").symlink_to(theirs / "tmp-0a")
    with pytest.raises(FileExistsError):
        TarWriter(out / "0.tar")
    assert (theirs / "tmp-0a").read_text() == "precious"


def test_of_many_one_creates(out: Path) -> None:
    """Threads, each with a folder of its own."""
    won: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        folder = OutputFolder(out)
        start.wait()
        for name in map(str, range(20)):
            if folder.create(name, str(number).encode()):
                won.append(int(name))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def test_what_a_control_file_holds_is_read_within_bounds(out: Path) -> None:
    folder = OutputFolder(out)
    folder.create("lease", bytes(10**6))
    assert len(folder.read("lease")) <= 4096
    assert folder.read("none") == b"" and folder.version("none") is None


def test_the_folder_of_control_files_goes_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there when it is to be made, and removed right behind that by a process that is through."""
    make, met = os.mkdir, list[str]()

    def making(path: Any, *arguments: Any) -> None:
        if os.path.basename(path) == WORK and not met:
            met.append(path)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        make(path, *arguments)

    monkeypatch.setattr(os, "mkdir", making)
    folder = OutputFolder(tmp_path)
    assert folder.create("train-00000.lease-1", b"{}") and met
    met.clear()
    folder.remove("train-00000.lease-1")
    folder.close()
    folder.put("manifest.json", b"{}")
    assert folder.get("manifest.json") == b"{}" and met
    met.clear()
    folder.close()
    assert folder.begin("train-00000", "1-me").is_dir() and met


def test_a_file_in_place_of_the_folder_of_control_files_is_told(tmp_path: Path) -> None:
    (tmp_path / WORK).touch()
    with pytest.raises(OutputError, match=r"--output .*: \.work in it is a file; remove it"):
        OutputFolder(tmp_path).create("train-00000.lease-1", b"{}")
