"""examples/train_diffusers.py: real diffusers models, tiny and random, learn from our shards; held-out loss, resumed runs."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import pyarrow.parquet as pq
import pytest
import torch

from precompute import run
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "train_diffusers.py"
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 64 + 6 * 4,
}
SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 128,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 64,
    "pos_embed_max_size": 16,
}
Train = Callable[..., str]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Twenty-four pictures with two kinds of captions, llava's first, one text encoder, and a second one as a layer."""
    raw, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    members = [
        part
        for row in range(24)
        for part in ((f"{row:02d}.jpg", jpeg(row, (256, 256))), (f"{row:02d}.txt", f"caption {row}".encode()))
    ]
    write_tar(raw / "00000.tar", members)
    added = [{"key": f"00000-{row:02d}", "caption": f"a longer one of picture {row}"} for row in range(24)]
    (raw / "llava.jsonl").write_text("".join(json.dumps(row) + "\n" for row in added))
    toys: dict[str, Any] = {"dtype": "float32", "num_threads": 1}
    base = folder / "base"
    run.run(
        run.Config(
            "builders/webdataset",
            base,
            data_dir=raw,
            vae="toy",
            text_encoder=("toy",),
            captions=(f"llava={raw / 'llava.jsonl'}",),
            max_captions=2,
            resolutions=(64,),
            **toys,
        )
    )
    run.run(
        run.Config(output=folder / "g", beside=str(base), text_encoder=("g=toy?layer=-2&pooled",), **toys)
    )
    return base, folder / "g"


def fixed(shards: tuple[Path, Path]) -> list[str]:
    """The flags of all runs."""
    base, layer = map(str, shards)
    return [base, "--layers", layer, *["--held-out", "0.2", "--batch-size", "4", "--learning-rate", "0.003"]]


@pytest.fixture
def train(
    shards: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Train]:
    def trained(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["train_diffusers.py", *fixed(shards), *map(str, arguments)])
        accelerate.state.AcceleratorState._reset_state(True)
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return capsys.readouterr().out

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    yield trained
    accelerate.state.AcceleratorState._reset_state(True)


@pytest.mark.parametrize("config", [UNET, SD3], ids=lambda config: config["_class_name"])
def test_loss_falls_and_a_run_is_resumed(train: Train, tmp_path: Path, config: dict[str, Any]) -> None:
    model, output = tmp_path / "model.json", tmp_path / "run"
    model.write_text(json.dumps(config))
    said = train("--model", model, "--output", output, "--steps", 40, "--log-every", 20, "--save-every", 20)
    losses = [float(value) for value in re.findall(r"loss (\d+\.\d+)", said)]
    held_out = [float(value) for value in re.findall(r"held out (\d+\.\d+)", said)]
    assert len(losses) == len(held_out) == 2
    assert losses[1] < losses[0] and held_out[1] < held_out[0]
    with pytest.raises(
        SystemExit,
        match=r"^--output .*run: there are checkpoints of an earlier run; go on with --resume, or name another",
    ):
        train("--model", model, "--output", output, "--steps", 40)
    said = train(
        "--model", model, "--output", output, "--steps", 60, "--log-every", 20, "--save-every", 20, "--resume"
    )
    assert re.findall(r"step +(\d+)  loss", said) == ["60"]
    assert float(re.findall(r"held out (\d+\.\d+)", said)[0]) < held_out[0]
    family = getattr(diffusers, config["_class_name"])
    weights = family.from_pretrained(output / "model").state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_two_processes_begin_and_one_goes_on(train: Train, shards: tuple[Path, Path], tmp_path: Path) -> None:
    """Both are started by `accelerate launch`, as a user starts them."""
    (tmp_path / "model.json").write_text(json.dumps(UNET))
    flags = (
        "--model",
        tmp_path / "model.json",
        "--output",
        tmp_path / "run",
        "--log-every",
        1,
        "--save-every",
        2,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two = ("--multi_gpu", "--num_processes", 2, "--main_process_port", port)
    given = (*fixed(shards), *flags, "--steps", 2)
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *map(str, (*two, EXAMPLE, *given))],
        env={
            **os.environ,
            "PYTHONPATH": str(EXAMPLE.parents[1]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + train(*flags, "--steps", 3, "--resume")
    assert re.findall(r"step +(\d+)  loss", said) == ["1", "2", "3"]


def test_captions_are_drawn_as_told(train: Train, shards: tuple[Path, Path], tmp_path: Path) -> None:
    """The first are llava's, so that its weight alone gives the same losses as they do, and no other draw."""
    kinds = pq.read_table(next(shards[0].glob("*.parquet")))["caption_kinds"].to_pylist()
    assert {kind[0] for kind in kinds} == {"llava"} != {kind[1] for kind in kinds}
    (tmp_path / "model.json").write_text(json.dumps(UNET))

    def losses(captions: str) -> tuple[str, ...]:
        output = tmp_path / re.sub(r"\W", "", captions)
        flags = ("--captions", captions, "--steps", 3, "--log-every", 1, "--save-every", 3)
        said = train("--model", tmp_path / "model.json", "--output", output, *flags)
        return tuple(re.findall(r"(?:loss|held out) +(\d+\.\d+)", said))

    first, random = losses("first"), losses("random")
    assert len(first) == 4
    assert losses('{"llava": 1}') == first
    assert len({first, random, losses(json.dumps({kinds[0][1]: 1}))}) == 3


def test_what_cannot_be(train: Train, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text(json.dumps(SD3))
    with pytest.raises(SystemExit, match="--resume: no checkpoint"):
        train("--model", model, "--output", tmp_path, "--resume")
