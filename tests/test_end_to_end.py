"""Photographs become training batches with real model classes: each number is held against the library's own."""

import io
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers

import builders
from loader import make_loader, noise
from loader.format import Manifest
from precompute.input.pixels import read_picture
from tests.support.judges import samples_by_tarfile
from tests.support.tiny_models import save_clip, save_kl

ROOT = Path(__file__).parents[1]
SCALING_FACTOR = 0.13025


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a diffusers pipeline has it: vae, text_encoder, tokenizer, small and random."""
    return save_clip(save_kl(tmp_path_factory.mktemp("model"), scaling_factor=SCALING_FACTOR))


@pytest.fixture(scope="module")
def shards(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "demo"
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "precompute/run.py",
        "builders/demo",
    ]
    command += ["--vae", str(model), "--text-encoder", str(model), "--dtype", "float32", "--batch-size", "4"]
    command += ["--resolutions", "64", "128", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def stored(shards: Path) -> dict[str, dict[str, bytes]]:
    return samples_by_tarfile(shards)


def array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)


@torch.inference_mode()
def test_moments_are_the_posterior_of_the_right_photograph(
    model: Path, stored: dict[str, dict[str, bytes]]
) -> None:
    vae = diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae")
    rows = builders.load_dataset("builders/demo", split="train", streaming=True).decode(False)
    for row in rows:
        for resolution, pixels in read_picture(row["image"]["bytes"], [64, 128]).pixels.items():
            x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            posterior = vae.encode(x).latent_dist
            expected = torch.cat([posterior.mean, posterior.std], dim=1)[0].numpy()
            moments = array(stored[row["key"]][f"moments_{resolution}.npy"])
            np.testing.assert_allclose(moments, expected, rtol=2e-3, atol=2e-3)


@torch.inference_mode()
def test_caption_latents_are_the_last_hidden_state_of_the_right_caption(
    model: Path, shards: Path, stored: dict[str, dict[str, bytes]]
) -> None:
    text_model = transformers.CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")

    def last_hidden_state(caption: str) -> np.ndarray:
        tokens = tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt")
        return text_model(tokens.input_ids).last_hidden_state[0].numpy()

    rows = builders.load_dataset("builders/demo", split="train", streaming=True).decode(False)
    captions = {row["key"]: row["caption"] for row in rows}
    assert stored.keys() == captions.keys()
    for key, caption in captions.items():
        latents = array(stored[key]["caption_latents.npy"])
        np.testing.assert_allclose(latents, last_hidden_state(caption), rtol=2e-3, atol=2e-3)
    null = np.load(shards / "null_caption.npz", allow_pickle=False)["caption_latents"]
    np.testing.assert_allclose(null.astype(np.float32), last_hidden_state(""), rtol=2e-3, atol=2e-3)


def test_loader_samples_and_scales_the_moments(shards: Path, stored: dict[str, dict[str, bytes]]) -> None:
    batches = make_loader(shards, batch_size=5, resolution=128, seed=3, extras=("key", "caption"))
    seen, position = [], 0
    for batch in batches:
        for index, key in enumerate(batch["key"]):
            mean, std = np.split(array(stored[key]["moments_128.npy"]), 2)
            expected = (mean + std * noise(3, 0, position, mean.shape)) * SCALING_FACTOR
            np.testing.assert_allclose(
                batch["image_latents"][index].float().numpy(), expected, rtol=2e-3, atol=1e-3
            )
            latents = array(stored[key]["caption_latents.npy"])
            np.testing.assert_array_equal(batch["caption_latents"][index, 0].float().numpy(), latents)
            assert batch["caption"][index] == stored[key]["txt"].decode()
            seen.append(key)
            position += 1
    assert sorted(seen) == sorted(stored)


def test_recipe_notices_a_changed_weight(model: Path, shards: Path, tmp_path: Path) -> None:
    recipe = Manifest.from_json((shards / "manifest.json").read_bytes()).recipe
    assert recipe["image_encoder"]["scale"] == SCALING_FACTOR
    vae = diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae")
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    changed = tmp_path / model.name
    changed.mkdir()
    for part in ("text_encoder", "tokenizer"):
        (changed / part).symlink_to(model / part)
    vae.save_pretrained(changed / "vae")
    command = [
        sys.executable,
        "precompute/run.py",
        "builders/demo",
        "--output",
        str(shards),
        "--resolutions",
        "64",
        "128",
    ]
    command += [
        "--vae",
        str(changed),
        "--text-encoder",
        str(changed),
        "--dtype",
        "float32",
        "--batch-size",
        "4",
    ]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 1
    assert "image_encoder.weights: " in done.stderr
    assert "text_encoders" not in done.stderr, "only what differs is named"


def test_manifest_holds_no_path_of_the_machine(model: Path, shards: Path) -> None:
    for path in [shards / "manifest.json", *shards.glob("train-*.json")]:
        assert str(model) not in path.read_text()
        assert json.loads(path.read_text())["recipe"]["image_encoder"]["weights"]
