"""What is left out of a source is told by the command, kept in marker and manifest, and held against a listing of its own by verify."""

import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from loader.format import Manifest, Marker
from precompute import run, verify
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

TOYS = ["--vae", "toy", "--text-encoder", "toy", "--resolutions", "64", "--batch-size", "2"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    files = {
        "a.jpg": jpeg(0), "a.txt": b"a", "b.jpg": jpeg(1), "b.txt": b"b", "c.jpg": jpeg(2)[:999], "c.txt": b"c", "d.jpg.txt": b"d",
        "d.jpg": jpeg(3), ".DS_Store": b"x", ".git/e.jpg": jpeg(4), "Thumbs.db": b"x", "b.caption": b"second",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    os.mkfifo(tmp_path / "photos/pipe.jpg")
    return tmp_path / "photos"


def counts_on_disk(out: Path) -> dict[str, int]:
    manifest = Manifest.from_json((out / "manifest.json").read_bytes())
    markers = [Marker.from_json(path.read_bytes()) for path in sorted(out.glob("train-*.json"))]
    left_out = manifest.splits["train"].left_out
    summed: dict[str, int] = {}
    for marker in markers:
        for reason, files in marker.left_out.items():
            summed[reason] = summed.get(reason, 0) + files
    assert summed == left_out
    return left_out


Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """command(module, *arguments, status=0): what it prints, run in this process."""

    def call(module: ModuleType, *arguments: str | Path, status: int = 0) -> str:
        monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, arguments)])
        try:
            module.main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
        told = capsys.readouterr().out
        assert code == status, told
        return told

    return call


@pytest.mark.parametrize("prepare", [[], ["--prepare"]])
def test_a_folder(
    photos: Path, tmp_path: Path, prepare: list[str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    out, where = tmp_path / "out", ["--data-dir", str(photos)]
    for again in (False, True):  # the second time from the cache
        told = command(run, "builders/folder", *where, *TOYS, *prepare, "--output", out)
        assert counts_on_disk(out) == {"hidden": 2, "not_image_or_caption": 1, "second_caption_file": 1}
        assert re.search(r"left out, no rows +4\n +hidden +2\n +not_image_or_caption +1\n", told)
        command(verify, out, "--source", "builders/folder", *where)
        for path in () if again else out.glob("train-*.json"):
            path.unlink()
    (photos / "passed_by.db").write_bytes(b"x")
    told = command(verify, out, "--source", "builders/folder", *where, status=1)
    assert "4 files of it are no row's" in told and "3 are counted as left out" in told


def test_tars(tmp_path: Path, command: Command) -> None:
    out, tars = tmp_path / "out", tmp_path / "tars"
    sample = [("a.jpg", jpeg(0)), ("a.txt", b"a"), ("a.cls", b"7"), ("a.json", b"{}")]
    write_tar(tars / "0.tar", [*sample, ("._a.jpg", b"x"), ("x/.y/z.jpg", b"x")])
    accented = [
        (unicodedata.normalize("NFD", "é.jpg"), jpeg(1)),
        (unicodedata.normalize("NFC", "é.txt"), b"e"),
    ]
    write_tar(tars / "1.tar", [("._b.jpg", b"x"), *sample, *accented])
    (tars / "README.md").write_bytes(b"x")
    command(run, "builders/webdataset", "--data-dir", tars, *TOYS, "--output", out)
    assert counts_on_disk(out) == {"hidden": 3, "no_archive": 1}
    where = ["--source", "builders/webdataset", "--data-dir", tars]
    command(verify, out, *where)
    marker = out / "train-00001.json"
    marker.write_text(marker.read_text().replace('"hidden": 1', '"hidden": 2'))
    assert "3 files of it are no row's (0.tar/._a.jpg" in command(verify, out, *where, status=1)
