"""Autoencoders that no preset has, from the command through the shards to the loader, against the diffusers pipeline that takes them."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_img2img as img2img
from PIL import Image

from loader import make_loader
from tests.support import encoders_page, tiny_models
from tests.support.hard_captions import EDGE, TINY_RUN, open_manifest, same
from tests.support.launching import run_here


def of_image_to_image(vae: Any, pictures: list[Image.Image]) -> torch.Tensor:
    """Latents as SDXL's pipeline encodes a picture: what lies in its config as statistics of each channel, it takes."""
    pixels = torch.cat([VaeImageProcessor().preprocess(picture) for picture in pictures])
    parts = {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler"}
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(vae=vae, **dict.fromkeys(parts))
    found: torch.Tensor = pipeline.prepare_latents(
        pixels, None, len(pictures), 1, torch.float32, "cpu", add_noise=False
    )
    return found


def of_qwen_image_2_1(vae: Any, pictures: list[Image.Image]) -> torch.Tensor:
    """Latents as its pipeline encodes a picture: with an alpha of its own."""
    cls, channels = diffusers.QwenImage21Pipeline, vae.config.z_dim
    processor = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=channels)
    pixels = torch.cat([processor.preprocess(picture.convert("RGBA")) for picture in pictures])
    # Its other parts, which it wants when it is made, read prompts.
    pipeline = SimpleNamespace(vae=vae, latent_channels=channels)
    found: torch.Tensor = cls._encode_vae_image(pipeline, pixels[:, :, None], None)
    return found[:, :, 0]


Judge = Callable[[Any, list[Image.Image]], torch.Tensor]
# How it is saved, its class, the folder in which that lies, and the pipeline's own way.
AUTOENCODERS: dict[str, tuple[Callable[[Path], Path], str, str, Judge]] = {
    "taesd": (tiny_models.save_tiny, "AutoencoderTiny", "", of_image_to_image),
    "qwen-image-2.1": (
        lambda folder: tiny_models.save_qwen(folder, diffusers.AutoencoderKLQwenImage21, decoder_base_dim=8),
        "AutoencoderKLQwenImage21", "", of_qwen_image_2_1,
    ),
    "playground-2.5": (
        lambda folder: tiny_models.save_kl(
            folder, latents_mean=[-1.6, 0.4, -0.3, -2.1], latents_std=[8.4, 5.9, 5.4, 5.3], scaling_factor=0.5
        ),
        "AutoencoderKL", "vae", of_image_to_image,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", AUTOENCODERS)
@torch.no_grad()
def test_shards_hold_what_the_pipeline_encodes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, family, subfolder, encoded = AUTOENCODERS[name]
    vae = getattr(diffusers, family).from_pretrained(save(tmp_path / "model"), subfolder=subfolder).eval()
    # Its middle, rather than a sample of the posterior.
    argmax = functools.partial(img2img.retrieve_latents, sample_mode="argmax")
    monkeypatch.setattr(img2img, "retrieve_latents", argmax)
    photos, output = tmp_path / "photos", tmp_path / "shards"
    photos.mkdir()
    for number in range(3):
        small = np.random.RandomState(number).randint(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((EDGE, EDGE), Image.Resampling.BICUBIC).save(photos / f"{number}.png")
        (photos / f"{number}.txt").write_text(f"picture {number}")
    flags = ["builders/folder", "--data-dir", photos, "--output", output, *TINY_RUN]
    run_here(monkeypatch, capsys, *flags, "--vae", tmp_path / "model", "--text-encoder", "toy")
    (batch,) = make_loader(output, 3, shuffle=False, posterior="mean", extras=["caption"])
    pictures = [Image.open(photos / f"{caption[-1]}.png").convert("RGB") for caption in batch["caption"]]
    (spec,) = (f for f in open_manifest(output).fields if f.kind in ("moments", "latents"))
    assert spec.kind == encoders_page.AUTOENCODERS[name][3].kind
    offset = float(np.abs(np.multiply(spec.shift or 0.0, spec.scale or 0.0)).max())
    off = same(batch["image_latents"].float(), encoded(vae, pictures), "latents", 2, offset)
    if os.environ.get("LATENTMILL_DOCS"):
        encoders_page.write(name, f"{off:.1e}")
