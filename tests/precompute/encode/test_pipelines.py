"""Every preset, from the command through the shards to the loader, against what its own diffusers pipeline computes.

Captions go through the pipeline's `encode_prompt`, pictures through its autoencoder and the scale of its training script.
"""

import functools
import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from loader.format import Field
from precompute.encode.presets import PRESETS
from tests.support import encoders_page, tiny_models
from tests.support.hard_captions import (
    CAPTIONS,
    TINY_RUN,
    Rows,
    held,
    numbers,
    open_manifest,
    real,
    same,
    save_photos,
    stored,
)
from tests.support.hub_cache import cached, link_to_blobs
from tests.support.launching import run_here
from tests.support.tiny_pipelines import PARTS, make_pipeline


def as_called(pipeline: Any) -> Any:
    """The pipeline, whose `encode_prompt` has the defaults of its `__call__`: not all of them are its own."""
    encode = pipeline.encode_prompt
    takes = inspect.signature(encode).parameters
    for name, parameter in inspect.signature(pipeline.__call__).parameters.items():
        if name in takes and parameter.default not in (None, parameter.empty, takes[name].default):
            encode = functools.partial(encode, **{name: parameter.default})
    pipeline.encode_prompt = encode
    return pipeline


def sd15(p: Any, caption: str, null: bool) -> Rows:
    states, _ = p.encode_prompt(
        caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"caption_latents": states[0]}


def sdxl(p: Any, caption: str, null: bool) -> Rows:
    states, _, pooled, _ = p.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)
    return {
        "caption_latents": states[0, :, :16],
        "caption_latents_g": states[0, :, 16:],
        "caption_pooled_g": pooled[0],
    }


def sd3(p: Any, caption: str, null: bool) -> Rows:
    states, _, pooled, _ = p.encode_prompt(
        caption, caption, caption, device="cpu", do_classifier_free_guidance=False
    )
    assert not states[0, :77, 40:].any(), "both CLIPs side by side, then zeros"
    return {
        "caption_latents": states[0, :77, :16],
        "caption_latents_g": states[0, :77, 16:40],
        "caption_latents_t5": states[0, 77:],
        "caption_pooled": pooled[0, :12],
        "caption_pooled_g": pooled[0, 12:],
    }


def flux1(p: Any, caption: str, null: bool) -> Rows:
    states, pooled, _ = p.encode_prompt(caption, caption, device="cpu")
    return {"caption_latents": states[0], "caption_pooled_clip": pooled[0]}


def flux2(p: Any, caption: str, null: bool) -> Rows:
    return {"caption_latents": p.encode_prompt(caption, device="cpu")[0][0]}


def qwen_image(p: Any, caption: str, null: bool) -> Rows:
    states, mask = p.encode_prompt(caption, device="cpu")
    return {"caption_latents": states[0] if mask is None else real(states, mask)}


def z_image(p: Any, caption: str, null: bool) -> Rows:
    return {
        "caption_latents": p.encode_prompt([caption], device="cpu", do_classifier_free_guidance=False)[0][0]
    }


def masked(p: Any, caption: str, null: bool) -> Rows:
    """The result of a pipeline whose `encode_prompt` gives states and mask, and those of the negative prompt."""
    states, mask, *negative = p.encode_prompt(caption, device="cpu")
    return {"caption_latents": real(*negative) if null else real(states, mask)}


def hunyuan_image(p: Any, caption: str, null: bool) -> Rows:
    states, mask, glyphs, glyph_mask = p.encode_prompt(caption, device="cpu")
    return {"caption_latents": real(states, mask), "caption_latents_glyph": real(glyphs, glyph_mask)}


def wan(p: Any, caption: str, null: bool) -> Rows:
    return {
        "caption_latents": p.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)[0][0]
    }


def chroma(p: Any, caption: str, null: bool) -> Rows:
    states, _, mask, *_ = p.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)
    return {"caption_latents": real(states, mask)}


def kandinsky5(p: Any, caption: str, null: bool) -> Rows:
    states, pooled, _ = p.encode_prompt(caption, device="cpu")
    return {"caption_latents": states[0], "caption_pooled_clip": pooled[0]}


def hidream(p: Any, caption: str, null: bool) -> Rows:
    t5, _, llama, _, pooled, _ = p.encode_prompt(
        *[caption] * 4, device="cpu", dtype=torch.float32, do_classifier_free_guidance=False
    )
    return {
        "caption_latents": t5[0],
        "caption_latents_llama": torch.cat(list(llama[:, 0]), dim=-1),
        "caption_pooled_clip": pooled[0, :12],
        "caption_pooled_g": pooled[0, 12:],
    }


def cogview4(p: Any, caption: str, null: bool) -> Rows:
    return {
        "caption_latents": p.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)[0][0]
    }


def auraflow(p: Any, caption: str, null: bool) -> Rows:
    return {
        "caption_latents": p.encode_prompt(caption, device="cpu", do_classifier_free_guidance=False)[0][0]
    }


TEXT: dict[str, Callable[[Any, str, bool], Rows]] = {
    "sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux1": flux1, "flux2-dev": flux2, "flux2-klein": flux2,
    "qwen-image": qwen_image, "z-image": z_image, "sana": masked, "pixart-sigma": masked, "lumina2": masked,
    "hunyuan-image": hunyuan_image, "wan": wan, "chroma": chroma, "kandinsky5": kandinsky5, "hidream": hidream,
    "auraflow": auraflow, "cogview4": cogview4, "ltx": masked,
}  # fmt: skip


# --- pictures ---------------------------------------------------------------------------------------------------------

Scaled = Callable[[Any, torch.Tensor], torch.Tensor]


def kl(**config: Any) -> tuple[Callable[[Path], Path], str, Scaled]:
    def scaled(p: Any, pixels: torch.Tensor) -> torch.Tensor:
        vae = p.vae
        mode = vae.encode(pixels).latent_dist.mode()
        # Whether a pipeline shifts back what it decodes, only its code says: Kandinsky 5 takes FLUX.1's autoencoder and does not.
        shifted = "shift_factor" in inspect.getsource(type(p).__call__)
        return (mode - (vae.config.shift_factor or 0) * shifted) * vae.config.scaling_factor

    channels = config.pop("channels", 16)
    return lambda folder: tiny_models.save_kl(folder, channels, **config), "AutoencoderKL", scaled


def column(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)


def one_frame(p: Any, pixels: torch.Tensor) -> torch.Tensor:
    mode = p.vae.encode(pixels[:, :, None]).latent_dist.mode()
    return ((mode - column(p.vae.config.latents_mean)) / column(p.vae.config.latents_std))[:, :, 0]


def ltx_frame(p: Any, pixels: torch.Tensor) -> torch.Tensor:
    mode = p.vae.encode(pixels[:, :, None]).latent_dist.mode()
    return p._normalize_latents(mode, p.vae.latents_mean, p.vae.latents_std, p.vae.config.scaling_factor)[
        :, :, 0
    ]


FLUX_KL = kl(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
FLUX2 = (
    lambda folder: tiny_models.save_flux2(folder / "vae"),
    "AutoencoderKLFlux2",
    lambda p, pixels: p._encode_vae_image(pixels, None),
)
PICTURES: dict[str, tuple[Callable[[Path], Path], str, Scaled]] = {
    "sd15": kl(channels=4, scaling_factor=0.18215),
    "sdxl": kl(channels=4, scaling_factor=0.13025),
    "sd3": kl(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
    "flux2-dev": FLUX2,
    "flux2-klein": FLUX2,
    "qwen-image": (
        lambda folder: tiny_models.save_qwen(folder / "vae"), "AutoencoderKLQwenImage", one_frame
    ),
    "sana": (
        lambda folder: tiny_models.save_dc(folder / "vae"), "AutoencoderDC",
        lambda p, pixels: p.vae.encode(pixels).latent * p.vae.config.scaling_factor,
    ),
    "hunyuan-image": (
        tiny_models.save_hunyuan, "AutoencoderKLHunyuanImage",
        lambda p, pixels: p.vae.encode(pixels).latent_dist.mode() * p.vae.config.scaling_factor,
    ),
    "wan": (
        lambda folder: tiny_models.save_qwen(folder / "vae", diffusers.AutoencoderKLWan), "AutoencoderKLWan", one_frame
    ),
    "pixart-sigma": kl(channels=4, scaling_factor=0.13025),
    "auraflow": kl(channels=4, scaling_factor=0.13025),
    "ltx": (lambda folder: tiny_models.save_ltx(folder / "vae"), "AutoencoderKLLTXVideo", ltx_frame),
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"))


# diffusers 0.42 gives huggingface_hub 2 an argument that it no longer takes.
@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks` argument:UserWarning")
@pytest.mark.parametrize("name", PARTS)
@torch.no_grad()
def test_shards_hold_what_the_pipeline_computes(
    name: Any,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Name a preset by `--for` alone, without the Hub: its parts lie in the cache, as `hf download` leaves them."""
    preset, (save, family, scaled) = PRESETS[name], PICTURES.get(name, FLUX_KL)
    model = cached(tmp_path / "cache", preset.model, monkeypatch)
    save(model)
    vae = getattr(diffusers, family).from_pretrained(model / "vae").eval()
    pipeline = as_called(make_pipeline(name, preset.pipeline, model, vae))
    if preset.elsewhere:
        put_elsewhere(model, cached(tmp_path / "cache", preset.elsewhere, monkeypatch))
    link_to_blobs(model)
    flags = ["builders/folder", "--data-dir", photos, "--output", tmp_path / "shards", *TINY_RUN]
    said = run_here(monkeypatch, capsys, *flags, "--for", name)
    assert f"--for {name}" in said and said.count("--text-encoder") == len(PRESETS[name].text_encoders)

    pooled = any("pooled" in value for value in PRESETS[name].text_encoders)
    batch, text = held(
        tmp_path / "shards", lambda caption, null: TEXT[name](pipeline, caption, null), pooled=pooled
    )
    pictures = [Image.open(photos / f"{number}.png") for number in numbers(batch)]
    pixels = torch.cat([VaeImageProcessor(vae_scale_factor=8).preprocess(picture) for picture in pictures])
    # Raw moments are rounded when they are stored, and latents again when they are read.
    fields = open_manifest(tmp_path / "shards").fields
    (spec,) = (f for f in fields if f.kind in ("moments", "latents"))
    offset = float(np.abs(np.multiply(spec.shift or 0.0, spec.scale or 0.0)).max())
    picture = same(batch["image_latents"].float(), scaled(pipeline, pixels), "latents", 2, offset)
    as_the_page_says(name, fields, batch)
    if os.environ.get("LATENTMILL_DOCS"):
        encoders_page.write(name, f"{text:.1e} / {picture:.1e}")


def put_elsewhere(model: Path, repository: Path) -> None:
    """Move the part that HiDream's repository does not hold into one of its own, at its top, as language models are published."""
    for part in ("text_encoder_4", "tokenizer_4"):
        for file in (model / part).iterdir():
            file.rename(repository / file.name)
        (model / part).rmdir()
    link_to_blobs(repository)


def as_the_page_says(name: Any, fields: Sequence[Field], batch: dict[str, Any]) -> None:
    """Names, kinds and tokens, those of the longest caption too; widths are the published weights', which are not here."""
    (picture, _), *text = encoders_page.fields(name)
    found = {f.name: f for f in fields if f.kind not in ("moments", "latents")}
    (spec,) = (f for f in fields if f.name not in found)
    assert spec.kind == picture.kind
    assert found.keys() == {field.name for field, _ in text}
    for field, varies in text:
        here = found[field.name]
        assert here.kind == field.kind and here.shape[:-1] == ((None,) if varies else field.shape[:-1])
        if field.kind == "caption_latents" and "glyph" not in field.name:
            longest = max(len(stored(batch, field.name, row)) for row in range(len(CAPTIONS)))
            assert longest == field.shape[0], field.name


def test_the_page_has_every_preset_as_the_table_has_it() -> None:
    page = encoders_page.PAGE.read_text(encoding="utf-8")
    found = encoders_page.measured(page)
    again = encoders_page.AGAIN
    assert page == encoders_page.render(found), f"docs/encoders.md is older than the presets: {again}"
    number = r"\d\.\de-\d\d"
    assert all(re.fullmatch(f"{number} / {number}", found[name]) for name in PRESETS), again
    assert all(re.fullmatch(number, found[name]) for name in encoders_page.AUTOENCODERS), again
