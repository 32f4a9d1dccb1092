"""Start precompute/run.py as a user does, and look at what it left."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.forked import Forked

ROOT = Path(__file__).parents[2]
TOY = ("--vae", "toy", "--text-encoder", "toy", "--dtype", "float32", "--batch-size", "4")
SMALL_TOY = (*TOY[:-1], "3", "--resolutions", "64")


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def few_of_demo(rows: int, output: Path) -> list[str | Path]:
    """The arguments of a run over so many rows of the demo, but for the models."""
    return [
        "builders/demo",
        "--limit",
        f"{rows}",
        "--resolutions",
        "64",
        "--dtype",
        "float32",
        "--output",
        output,
    ]


def launch(processes: int = 1) -> list[str]:
    """`accelerate launch` for this many CPU processes."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    return (
        [*command, "--cpu"]
        if processes == 1
        else [*command, "--multi_gpu", "--num_processes", str(processes)]
    )


def run_precompute(
    *arguments: str | Path, processes: int = 1, check: bool = True, launcher: bool = False
) -> subprocess.CompletedProcess[str]:
    """The command, from the repository's root, in processes of its own; `launcher`: as a user types it, by `accelerate launch`."""
    script = ["precompute/run.py", *map(str, arguments)]
    if launcher:
        done = subprocess.run(
            [*launch(processes), *script],
            cwd=ROOT,
            env=environment(),
            text=True,
            capture_output=True,
            timeout=300,
        )
    else:
        ranks = range(processes)
        worlds = [{"RANK": f"{r}", "LOCAL_RANK": f"{r}", "WORLD_SIZE": f"{processes}"} for r in ranks]
        started = [Forked(*script, environment=world if processes > 1 else None) for world in worlds]
        ended = [process.wait() for process in started]
        done = next((process for process in ended if process.returncode), ended[0])
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def tars(folder: Path) -> dict[str, bytes]:
    """Contents of all tars by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def leftovers(folder: Path, splits: Sequence[str] = ("train",)) -> list[str]:
    """Names in the folder that are no part of a finished dataset."""
    kept = {"manifest.json", "null_caption.npz"}
    ends = (".tar", ".parquet", ".json")
    return [
        path.name
        for path in folder.iterdir()
        if path.name not in kept and not (path.name.startswith(tuple(splits)) and path.name.endswith(ends))
    ]


def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """What the command prints, run in this process: ten times as fast, where a test needs no process of its own."""
    from precompute import run

    monkeypatch.setattr("sys.argv", ["run.py", *map(str, arguments)])
    monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
    capsys.readouterr()
    run.main()
    return capsys.readouterr().out
