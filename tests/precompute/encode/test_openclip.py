"""`openclip:` encoders give what OpenCLIP gives: padding id 0, no mask over it, states after the final layer norm."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import save_file

from precompute.encode.presets import PRESETS
from precompute.encode.text import open_text_encoder
from precompute.errors import ModelError
from tests.support import encoders_page, tiny_models
from tests.support.hard_captions import TINY_RUN, held, numbers, same, save_photos
from tests.support.hub_cache import cached
from tests.support.launching import run_here

CAPTIONS = ["a photograph of a cat", "", "the cup " * 60]


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ModelError, match=r"latentmill\[openclip\]"):
        open_text_encoder("openclip:ViT-B-32/openai")


def save(folder: Path, family: str) -> Any:
    """Save a small random model as OpenCLIP's are published; returns OpenCLIP's own copy of it."""
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
        "custom_text": family == "CustomTextCLIP",
    }
    torch.manual_seed(5)
    made = getattr(open_clip.model, family)(
        config["embed_dim"], config["vision_cfg"], config["text_cfg"]
    ).eval()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(made.state_dict(), folder / "open_clip_model.safetensors")
    return made


@pytest.fixture(scope="module", params=["CLIP", "CustomTextCLIP"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """`openclip:local-dir:FOLDER` of a small random model, and OpenCLIP's own copy of it."""
    folder = tmp_path_factory.mktemp("openclip")
    made = save(folder, request.param)
    return f"openclip:local-dir:{folder}", made


@torch.no_grad()
def states_of(made: Any, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states after the final norm, and the pooled vector, as OpenCLIP computes them of its own tokens."""
    import open_clip

    tokens = open_clip.get_tokenizer("ViT-B-32")(captions)
    assert all((row[row.argmax() + 1 :] == 0).all() for row in tokens), "padded with 0"
    normed: list[torch.Tensor] = []
    hook = getattr(made, "text", made).ln_final.register_forward_hook(lambda *a: normed.append(a[-1]))
    pooled = made.encode_text(tokens)
    hook.remove()
    return normed[0], pooled


def test_states_are_those_after_the_final_layer_norm(model: tuple[str, Any]) -> None:
    name, made = model
    encoder = open_text_encoder(f"{name}?pooled")
    assert [field.shape for field in encoder.fields] == [(77, 64), (12,)]
    for arrays, states, vector in zip(encoder.encode(CAPTIONS), *states_of(made, CAPTIONS), strict=True):
        np.testing.assert_allclose(arrays["caption_latents"], states.numpy(), rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(arrays["caption_pooled"], vector.numpy(), rtol=2e-3, atol=2e-3)


def test_earlier_layer_is_that_block_s_output(model: tuple[str, Any]) -> None:
    open_clip = pytest.importorskip("open_clip")
    name, made = model
    outputs: list[torch.Tensor] = []
    block = getattr(made, "text", made).transformer.resblocks[-2]
    hook = block.register_forward_hook(lambda *a: outputs.append(a[-1]))
    with torch.no_grad():
        made.encode_text(open_clip.get_tokenizer("ViT-B-32")(CAPTIONS))
    hook.remove()
    for arrays, states in zip(
        open_text_encoder(f"{name}?layer=-2").encode(CAPTIONS), outputs[0], strict=True
    ):
        np.testing.assert_allclose(arrays["caption_latents"], states.numpy(), rtol=2e-3, atol=2e-3)


def test_model_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(ModelError, match="--text-encoder openclip:local-dir"):
        open_text_encoder(f"openclip:local-dir:{tmp_path}")
    with pytest.raises(ModelError, match="--text-encoder openclip:NoSuchModel"):
        open_text_encoder("openclip:NoSuchModel/openai")


@torch.no_grad()
def test_micro_diffusion_is_what_openclip_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The preset as it stands, its text tower out of a cache of the Hub, from the command to the loader."""
    preset, output, photos = PRESETS["micro-diffusion"], tmp_path / "out", tmp_path / "photos"
    made = save(
        cached(tmp_path / "cache", preset.elsewhere.removeprefix("hf-hub:"), monkeypatch), "CustomTextCLIP"
    )
    photos.mkdir()
    flags = ["builders/folder", "--data-dir", save_photos(photos), "--output", output, *TINY_RUN]
    model = tiny_models.save_kl(tmp_path / "sdxl", scaling_factor=0.13025)
    run_here(monkeypatch, capsys, *flags, "--for", "micro-diffusion", "--model", model)
    batch, text = held(output, lambda caption, null: {"caption_latents": states_of(made, [caption])[0][0]})
    vae = diffusers.AutoencoderKL.from_pretrained(model / "vae").eval()
    pictures = [Image.open(photos / f"{number}.png").convert("RGB") for number in numbers(batch)]
    pixels = torch.cat([VaeImageProcessor().preprocess(picture) for picture in pictures])
    latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    picture = same(batch["image_latents"].float(), latents, "latents", 2)
    if os.environ.get("LATENTMILL_DOCS"):
        encoders_page.write("micro-diffusion", f"{text:.1e} / {picture:.1e}")
