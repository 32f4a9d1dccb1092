"""A Hub that is out of order: what it does not give is no damage, and no command that would remove good work is told."""

import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
from huggingface_hub import HfFileSystem

from precompute import preview, verify
from precompute.shards import hub_client
from tests.support.finished_folder import write_shards
from tests.support.loopback_hub import LFS, Blob, LoopbackHub, Repo

REPO = "owner/latents"
URL = f"hf://datasets/{REPO}"
BROKEN, SILENT = 0, -2


@pytest.fixture
def published(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """Shards on the Hub; its client in this process pauses for no time, and waits a tenth of a second for an answer."""
    folder = write_shards(tmp_path / "latents", units=2, samples=2)
    files = [path for path in folder.iterdir() if path.is_file()]
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit("main", {p.name: Blob(p.read_bytes(), p.suffix in LFS) for p in files}, "first")
    clock = SimpleNamespace(sleep=lambda seconds: None, time=time.time)
    monkeypatch.setattr(huggingface_hub.utils._http, "time", clock)
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(huggingface_hub.constants, name, 0.1)
    monkeypatch.setattr(hub_client, "SILENCE", 0.1)
    HfFileSystem.clear_instance_cache()
    return hub


def ended(command: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [f"{command}.py", *arguments])
        {"verify": verify, "preview": preview}[command].main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("train-00001.tar", 500),
        ("train-00001.tar", BROKEN),
        ("train-00001.parquet", 429),
        ("train-00001.json", 403),
        ("manifest.json", SILENT),
        ("null_caption.npz", 500),
    ],
)
def test_a_file_that_the_hub_does_not_give_is_unread(
    published: LoopbackHub, capsys: pytest.CaptureFixture[str], name: str, status: int
) -> None:
    published.fail("GET", f"/resolve/.*{name}", status, times=100)
    assert ended("verify", URL) == 3
    *told, summary = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and told[0].startswith(name.removesuffix(".json") if "train" in name else name)
    assert "could not be read" in told[0] and "emove" not in told[0] and "again" in told[0]
    assert "1 file could not be read" in summary and "whole" not in summary and "fault" not in summary


TREE, ABOUT = "/tree/", rf"/api/datasets/{REPO}(/revision.*)?$"


@pytest.mark.parametrize(
    ("command", "path", "status"),
    [*(("verify", TREE, status) for status in (500, 429, 403, BROKEN, SILENT)), ("verify", ABOUT, 500), ("preview", TREE, BROKEN)],
)  # fmt: skip
def test_a_hub_that_lists_nothing_is_one_line(
    published: LoopbackHub, capsys: pytest.CaptureFixture[str], command: str, path: str, status: int
) -> None:
    published.fail("GET", path, status, times=100)
    assert ended(command, URL) == 3
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"error: {URL}: cannot list it (") and "name" not in told.rpartition("). ")[2]
    assert ("hf auth login" in told) == (status == 403) and told.endswith("try again")


def test_a_name_that_the_hub_does_not_know_is_a_wrong_flag(
    published: LoopbackHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("verify", "hf://datasets/owner/nothing") == ended("verify", f"{URL}@nothing") == 2
    for told in capsys.readouterr().err.splitlines():
        assert "Check the name" in told


def test_a_fault_of_a_moment_is_none(published: LoopbackHub, capsys: pytest.CaptureFixture[str]) -> None:
    for status in (500, 429, BROKEN, SILENT):
        published.fail("GET", "/tree/|/resolve/", status, times=1)
    assert ended("verify", URL) == 0
    assert "whole" in capsys.readouterr().out
