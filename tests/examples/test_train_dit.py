"""examples/train_dit.py as a user runs it: through `accelerate launch`, interrupted, with another number of processes."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.support.keyed_shards import FIELDS, write_shards

ROOT = Path(__file__).resolve().parents[2]

SMALL = ["--width", "32", "--depth", "1", "--batch-size", "8", "--record-keys", "--log-every", "20"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = [field for field in FIELDS if field.name in ("moments_256", "caption_latents")]
    return write_shards(tmp_path_factory.mktemp("shards") / "a", [20, 13, 17], fields=fields)


def launch(processes: int, *arguments: object) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["--multi_gpu", "--num_processes", str(processes), "--main_process_port", str(port)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *(several if processes > 1 else ["--cpu"])]
    return subprocess.Popen(
        [*command, str(ROOT / "examples" / "train_dit.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(processes: int, *arguments: object) -> str:
    output, _ = (process := launch(processes, *arguments)).communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def keys(output: Path, last_step: int) -> dict[int, list[str]]:
    """Keys of each step in global order, up to `last_step` of what the killed run wrote."""
    found: dict[int, list[str]] = {}
    for file in sorted(output.glob("keys-*.txt")):
        mine = {}
        for line in file.read_text().splitlines():
            step, *names = line.split()
            mine[int(step)] = names
        for number, names in mine.items():
            if number <= last_step or file.name == "keys-0.txt":
                found[number] = found.get(number, []) + names
    return found


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that nobody interrupts: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(1, shards, "--steps", 120, "--output", folder, *SMALL)


def test_loss_falls(whole: tuple[Path, str]) -> None:
    _, output = whole
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", output)]
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]


def test_killed_with_two_processes_and_resumed_with_one(
    shards: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    undisturbed = keys(whole[0], 120)
    assert sorted(undisturbed) == list(range(1, 121))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    two = launch(2, shards, "--steps", 10_000, "--output", tmp_path / "run", "--save-every", 10, *SMALL)
    deadline = time.monotonic() + 200
    while not checkpoint.exists() and two.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    everyone = [psutil.Process(two.pid), *psutil.Process(two.pid).children(recursive=True)]
    for process in everyone:  # torch gives each rank a session of its own
        process.kill()
    output, _ = two.communicate(timeout=300)
    assert checkpoint.exists(), output
    saved = torch.load(checkpoint, weights_only=True)["step"]
    last = saved + 15
    run(1, shards, "--steps", last, "--output", tmp_path / "run", "--resume", *SMALL)
    both = keys(tmp_path / "run", saved)
    steps = range(1, min(last, 120) + 1)
    assert [both[step] for step in steps] == [undisturbed[step] for step in steps]
    assert torch.load(checkpoint, weights_only=True)["step"] == last


def test_a_batch_that_processes_cannot_share_is_refused(shards: Path, tmp_path: Path) -> None:
    process = launch(2, shards, "--steps", 1, "--output", tmp_path / "run", "--batch-size", "7")
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "--batch-size 7: not divisible by 2 processes" in output
