"""Where an extra is missing, the flag or call that needs it is named with what pip installs: one line, and nothing half written."""

import importlib.util
import sys
from pathlib import Path

import pytest

from loader import make_loader
from precompute import choose, run
from precompute.encode.openclip import EXTRA
from tests.support.keyed_shards import write_shards
from tests.support.launching import SMALL_TOY


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """lacking(module): imported nowhere, found nowhere."""
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    find_spec = importlib.util.find_spec

    def lack(module: str) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == module else find_spec(name)
        )

    return lack


def said(
    command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> str:
    """The one line of the error."""
    monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    error = capsys.readouterr().err
    assert stopped.value.code in (1, 2) and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def test_where_names_duckdb(lacking, tmp_path: Path, monkeypatch, capsys) -> None:
    shards = write_shards(tmp_path / "shards", [5])
    lacking("duckdb")
    error = said(choose, monkeypatch, capsys, shards, "--where", "width > 1")
    assert "where='width > 1' needs DuckDB" in error and "pip install 'latentmill[select]'" in error
    with pytest.raises(ValueError, match=r"pip install 'latentmill\[select\]'"):
        make_loader(shards, batch_size=1, resolution=256, where="width > 1")
    assert len(make_loader(shards, batch_size=1, resolution=256, subset=(0, 1))) == 5, "a subset needs none"


@pytest.mark.parametrize(
    "module, dataset, flags, expected",
    [
        ("open_clip", "builders/demo", ("--text-encoder", "openclip:ViT-B-32/laion2b"), EXTRA),
        ("skimage", "builders/demo", (), 'pip install "latentmill[demo]"'),
    ],
)
def test_a_run_names_it(
    module, dataset, flags, expected, lacking, tmp_path: Path, monkeypatch, capsys
) -> None:
    lacking(module)
    output = tmp_path / "out"
    assert expected in said(run, monkeypatch, capsys, dataset, *SMALL_TOY, *flags, "--output", output)
    assert not list(output.glob("train-*"))
