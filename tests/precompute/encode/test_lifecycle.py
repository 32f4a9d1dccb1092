"""Each preset, and each autoencoder and text encoder that none has, through the life of a run: killed, taken over by two processes at once, run again,
verified.

Models are tiny and random; what works, dies and proves is the command.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from loader import make_loader
from precompute import verify
from precompute.encode.presets import PRESETS
from precompute.encode.text_spec import parse_text_encoder, split_value
from tests.precompute.encode import test_openclip
from tests.precompute.encode.test_autoencoders import AUTOENCODERS
from tests.precompute.encode.test_pipelines import FLUX_KL, PICTURES
from tests.support.launching import leftovers, run_here
from tests.support.tiny_pipelines import PARTS, t5
from tests.support.worker import DEAD

UNITS = 4  # of a picture each
LENGTH = 64  # tokens
CHANGES = 30  # to the disk: a run makes more


def save_mt5(folder: Path) -> str:
    t5(folder, family="MT5")
    return str(folder)


def save_openclip(folder: Path) -> str:
    test_openclip.save(folder, "CustomTextCLIP")
    return f"openclip:local-dir:{folder}"


# Text encoders that no preset has, and that of `micro-diffusion`; each saves one, and gives its name.
TEXTS = {"mt5": save_mt5, "openclip": save_openclip}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures nearly grey, which is what the decoders of these tests make of everything."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(UNITS):
        small = np.random.RandomState(number).randint(118, 138, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f'a sign that says "{number % 2}"')
    return folder


def save(name: str, folder: Path) -> dict[str, Any]:
    """Save its models; returns what of run.Config names them."""
    if name in TEXTS:
        return {"vae": "toy", "text_encoder": (TEXTS[name](folder),)}
    if name in AUTOENCODERS:
        AUTOENCODERS[name][0](folder)
        flags: dict[str, Any] = {"vae": str(folder), "text_encoder": ("toy",)}
    else:
        PICTURES.get(name, FLUX_KL)[0](folder)
        PARTS[name](folder)
        # What is padded to hundreds of tokens takes most of the time, and fewer do as well.
        specs = [parse_text_encoder(value) for value in PRESETS[name].values("M")]
        long = [spec for spec in specs if spec.padding in ("full", "masked") and (spec.length or 0) > LENGTH]
        shorter = tuple(f"{spec.name}{'=' * bool(spec.name)}?length={LENGTH}" for spec in long)
        flags = {"vae": None, "text_encoder": shorter, "for_model": name, "model": str(folder)}
    (weights,) = folder.rglob("diffusion_pytorch_model.safetensors")
    tensors = load_file(weights)
    for key, tensor in tensors.items():
        if key.startswith("decoder."):
            # A TAESD decodes to 0 .. 1, all others to -1 .. 1.
            tensor.fill_(0.5 if name == "taesd" and tensor.shape == (3,) else 0.0)
    save_file(tensors, weights, {"format": "pt"})
    return flags


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the markers, which hold times."""
    paths = [path for path in folder.iterdir() if not path.match("train-*.json")]
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.parametrize(("index", "name"), list(enumerate([*PARTS, *AUTOENCODERS, *TEXTS])))
def test_a_run_is_killed_shared_repeated_and_verified(
    index: int,
    name: Any,
    photos: Path,
    tmp_path: Path,
    start: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models, output, whole = save(name, tmp_path / "model"), tmp_path / "out", tmp_path / "whole"
    asked = {"dataset": "builders/folder", "options": ("min_image_size=1",), "timeout": 0.5, **models}
    flags = ["builders/folder", "--data-dir", photos, "--options", "min_image_size=1", "--resolutions", "64"]
    flags += ["--dtype", "float32", "--batch-size", "3", "--samples-per-shard", "3", "--num-threads", "1"]
    flags += ["--lease-timeout", "0.5"]
    for flag, field in (("--for", "for_model"), ("--model", "model"), ("--vae", "vae")):
        flags += [flag, models[field]] if models.get(field) else []
    flags += [part for value in models["text_encoder"] for part in ("--text-encoder", value)]

    run_here(monkeypatch, capsys, *flags, "--output", whole)
    killed = start(output, photos, die_at=1 + index * 7 % CHANGES, **asked)
    killed.join(timeout=300)
    assert killed.exitcode == DEAD
    other = start(output, photos, **asked)
    run_here(monkeypatch, capsys, *flags, "--output", output)
    other.join(timeout=300)
    assert other.exitcode == 0
    again = run_here(monkeypatch, capsys, *flags, "--output", output)
    assert f"{UNITS} of {UNITS} units finished before" in again
    assert contents(output) == contents(whole) and not leftovers(output)

    encoders = PRESETS[name].text_encoders if name in PARTS else ()
    names = [split_value(value)[0] for value in encoders]
    given = tuple(f"{part}={tmp_path / 'model'}" if part else str(tmp_path / "model") for part in names)
    given, vae = given or models["text_encoder"], models["vae"] or str(tmp_path / "model")
    config = verify.Config(
        str(output), decode=3, vae=vae, text_encoder=given, data_dir=photos,
        source="builders/folder", options=("min_image_size=1",),
    )  # fmt: skip
    assert verify.run(config) == 0, capsys.readouterr().out
    (batch,) = make_loader(output, UNITS)
    assert np.isfinite(batch["image_latents"].numpy()).all()
