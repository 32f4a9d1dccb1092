"""Weights as people have them: in shards, pickled, halved, as a variant alone, behind a link, in a cache of the Hub without the Hub."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from loader import make_loader
from precompute import verify
from tests.support import tiny_models
from tests.support.forked import run_command
from tests.support.hub_cache import COMMIT, cached, link_to_blobs
from tests.support.launching import ROOT, environment, run_here

REPOSITORY = "org/tiny-model"
# diffusers 0.42 gives huggingface_hub 2 an argument that it no longer takes.
pytestmark = pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
MESSAGE = "it has no weights but those of variant fp16"
Save = Callable[[Any, Path], None]


def pickled(model: Any, folder: Path) -> None:
    """Save weights as it was done before safetensors: `pytorch_model.bin`, or diffusers' name for it."""
    model.save_pretrained(folder)
    (weights,) = folder.glob("*.safetensors")
    diffusers_name = "diffusion_" if isinstance(model, diffusers.ModelMixin) else ""
    torch.save(model.state_dict(), folder / f"{diffusers_name}pytorch_model.bin")
    weights.unlink()


SAVES: dict[str, Save] = {
    "plain": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="20KB"),
    "pickled": pickled,
    "bfloat16": lambda model, folder: model.to(torch.bfloat16).save_pretrained(folder),
    "variant": lambda model, folder: model.to(torch.float16).save_pretrained(folder, variant="fp16"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_clip(tiny_models.save_kl(tmp_path_factory.mktemp("plain"), shift_factor=0.5))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(2):
        pixels = np.random.RandomState(number).randint(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture
def model(
    request: pytest.FixtureRequest, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """What is given as `--vae` and `--text-encoder`."""
    folder = tmp_path / "model"
    if request.param == "link":
        folder.symlink_to(plain)
        return str(folder)
    if request.param == "cache":
        folder = cached(tmp_path / "cache", REPOSITORY, monkeypatch)
        shutil.copytree(plain, folder, dirs_exist_ok=True)
        link_to_blobs(folder)
        return REPOSITORY
    shutil.copytree(plain / "tokenizer", folder / "tokenizer")
    for part, family in (("vae", diffusers.AutoencoderKL), ("text_encoder", transformers.CLIPTextModel)):
        SAVES[request.param](family.from_pretrained(plain / part), folder / part)
    return str(folder)


@pytest.mark.parametrize("model", [*SAVES, "link", "cache"], indirect=True)
def test_weights_are_read_as_the_library_reads_them(
    model: str,
    photos: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    how, output = request.node.callspec.params["model"], tmp_path / "out"
    flags = ["builders/folder", "--data-dir", photos, "--options", "min_image_size=1", "--output", output]
    flags += ["--resolutions", "64", "--dtype", "float32", "--vae", model, "--text-encoder", model]
    run_here(monkeypatch, capsys, *flags)
    assert caplog.text.count(MESSAGE) == (2 if how == "variant" else 0)
    (batch,) = make_loader(output, 2, shuffle=False, posterior="mean", extras=["key", "caption"])

    options: Any = {"variant": "fp16"} if how == "variant" else {}
    vae = diffusers.AutoencoderKL.from_pretrained(
        model, subfolder="vae", torch_dtype=torch.float32, **options
    )
    text = transformers.CLIPTextModel.from_pretrained(
        model, subfolder="text_encoder", dtype=torch.float32, **options
    )
    tokenizer = transformers.CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    numbers = [caption.rpartition(" ")[2] for caption in batch["caption"]]
    pixels = np.stack([np.asarray(Image.open(photos / f"{number}.png")) for number in numbers])
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
        ids = tokenizer(batch["caption"], padding="max_length", return_tensors="pt").input_ids
        states = text(ids).last_hidden_state
    latents = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(batch["image_latents"].float(), latents, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(batch["caption_latents"][:, 0].float(), states, rtol=2e-3, atol=2e-3)


def test_a_shift_that_is_left_out_stays_out(
    plain: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The recipe alone tells it: in a layer beside, and when verify opens the model again."""
    folder = cached(tmp_path / "cache", REPOSITORY, monkeypatch)
    shutil.copytree(plain, folder, dirs_exist_ok=True)
    flags = ["builders/folder", "--data-dir", photos, "--options", "min_image_size=1", "--dtype", "float32"]
    base, layer = tmp_path / "base", tmp_path / "layer"
    given = ["--resolutions", "64", "--vae", f"{REPOSITORY}?shift=0", "--text-encoder", "toy"]
    run_here(monkeypatch, capsys, *flags, "--output", base, *given)
    run_here(monkeypatch, capsys, *flags, "--output", layer, "--beside", base, "--resolutions", "32")
    for output in (base, layer):
        recipe = json.loads((output / "manifest.json").read_text())["recipe"]["image_encoder"]
        assert (recipe["shift"], recipe["model"], recipe["revision"]) == (0.0, REPOSITORY, COMMIT)
    config = verify.Config(str(base), decode=2, data_dir=photos)
    said = [str(finding) for finding in verify.verify(config).findings]
    assert not [finding for finding in said if "of the recipe" in finding], "as the model's config has it"


@pytest.mark.parametrize(
    ("flag", "part", "lost"),
    [
        ("--vae", "vae", "encoder.conv_in.weight"),
        ("--vae", "vae", "decoder.conv_out.bias"),
        ("--text-encoder", "text_encoder", "fc1.weight"),
        ("--text-encoder", "text_encoder", "final_layer_norm.bias"),
    ],
)
def test_a_weight_that_is_missing_is_not_made_up(
    flag: str,
    part: str,
    lost: str,
    plain: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = shutil.copytree(plain, tmp_path / "model")
    (file,) = (model / part).glob("*.safetensors")
    weights = load_file(file)
    gone = next(name for name in weights if name.endswith(lost))
    save_file({name: value for name, value in weights.items() if name != gone}, file, {"format": "pt"})
    given = {"--vae": "toy", "--text-encoder": "toy"} | {flag: str(model)}
    flags = [
        "builders/folder",
        "--data-dir",
        photos,
        "--options",
        "min_image_size=1",
        "--output",
        tmp_path / "out",
    ]
    with pytest.raises(SystemExit):
        run_here(monkeypatch, capsys, *flags, *(word for pair in given.items() for word in pair))
    said = capsys.readouterr().err
    assert said.startswith(f"error: {flag} {model}: its files lack 1 of its weights (") and lost in said


def test_what_libraries_say_of_weights_that_are_not_needed_is_not_said(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole CLIPModel, of which the text half is taken, makes a page of transformers' own."""
    model, output = tiny_models.save_clip_of_openai(tmp_path / "model"), tmp_path / "out"
    data = ["--data-dir", photos, "--options", "min_image_size=1"]
    run_here(
        monkeypatch, capsys, "builders/folder", *data, "--output", output, "--vae", "toy", "--text-encoder", model
    )  # fmt: skip
    for verb in ("verify", "preview"):
        more = ["--decode", "2", "--text-encoder", model] if verb == "verify" else []
        done = run_command(f"precompute/{verb}.py", output, "--data-dir", photos, *more)
        assert "every byte" in done.stdout or "report.html" in done.stdout, done.stderr
        assert "LOAD REPORT" not in done.stderr and "Loading weights" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_told_in_two_lines(tmp_path: Path) -> None:
    flags = [
        "builders/demo",
        "--output",
        tmp_path / "out",
        "--vae",
        "nobody/nothing",
        "--text-encoder",
        "toy",
    ]
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "precompute", "run", *map(str, flags)]
    done = subprocess.run(command, env={**environment(), **hub}, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1
    waiting, error = done.stderr.splitlines()
    assert waiting == "the Hub does not answer ([Errno 111] Connection refused): trying again"
    assert error.startswith(
        "error: --vae nobody/nothing: not in the local cache, and the Hub cannot be reached"
    )
