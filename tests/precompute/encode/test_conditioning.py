"""What pipelines do beside padding on the right: each option against the library, called as the pipeline calls it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

from precompute.encode.image import open_image_encoder
from precompute.encode.presets import choose_models
from precompute.encode.text import open_text_encoder
from precompute.encode.text_spec import text_encoder_value
from precompute.errors import UsageError
from tests.support import tiny_models

CAPTIONS = ["a photograph of a cat", "the woman in the cup with a flag", "cup", "A Man ON the flag "]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_decoder_only(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_clip(tmp_path_factory.mktemp("clip"))


def states(value: str, captions: list[str]) -> list[np.ndarray[Any, Any]]:
    encoder = open_text_encoder(value)
    again = text_encoder_value(
        json.loads(json.dumps(encoder.recipe)), value.partition("?")[0].removeprefix("auto:")
    )
    assert open_text_encoder(again).recipe == encoder.recipe, "a recipe opens the encoder it came from"
    return [arrays["caption_latents"] for arrays in encoder.encode(captions)]


def check(found: list[np.ndarray[Any, Any]], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.float().numpy(), rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_the_default_is_what_sdxl_takes(tmp_path: Path) -> None:
    folder = tiny_models.save_clip(tmp_path / "one")
    second = tiny_models.save_clip(tmp_path / "two", projection=True)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(second / part, folder / f"{part}_2")
    parts = {
        "text_encoder": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval(),
        "text_encoder_2": transformers.CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(folder / "tokenizer"),
        "tokenizer_2": transformers.AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
    }
    pipeline = diffusers.StableDiffusionXLPipeline(**parts, vae=None, unet=None, scheduler=None)
    texts = [*CAPTIONS, ""]
    rows, _, pooled, _ = pipeline.encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)
    chosen = choose_models(None, str(folder), None, ())
    one, two = (open_text_encoder(value).encode(texts) for value in chosen.text_encoders)
    joined = [
        np.concatenate([a["caption_latents"], b["caption_latents_g"]], axis=-1)
        for a, b in zip(one, two, strict=True)
    ]
    check(joined, list(rows))
    check([arrays["caption_pooled_g"] for arrays in two], list(pooled))


@torch.no_grad()
def test_left_padding_is_that_of_flux_2_dev(llama: Path) -> None:
    model = transformers.AutoModel.from_pretrained(llama).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama, padding_side="left")
    tokens = tokenizer(CAPTIONS, padding="max_length", max_length=12, return_tensors="pt")
    hidden = model(**{k: tokens[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
    expected = torch.cat([hidden.hidden_states[1], hidden.last_hidden_state], dim=-1)
    check(states(f"auto:{llama}?side=left&padding=masked&length=12&layer=1,-1", CAPTIONS), list(expected))


@torch.no_grad()
def test_padding_to_a_multiple_is_that_of_cogview_4(llama: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama, padding_side="left")
    model = transformers.AutoModel.from_pretrained(llama).eval()
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=model, _execution_device="cpu")
    embed = diffusers.CogView4Pipeline._get_glm_embeds
    expected = [embed(pipeline, [caption], 32, "cpu", torch.float32)[0] for caption in CAPTIONS]
    check(states(f"auto:{llama}?layer=-2&length=32&multiple=16&side=left", CAPTIONS), expected)


@torch.no_grad()
def test_masks_of_padded_text_are_those_of_ltx_and_chroma(t5: Path) -> None:
    model = transformers.T5EncoderModel.from_pretrained(t5 / "text_encoder").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(t5 / "tokenizer")
    pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=model, _execution_device="cpu")
    arguments = {"prompt": CAPTIONS, "max_sequence_length": 16, "device": "cpu", "dtype": torch.float32}
    rows, mask = diffusers.LTXPipeline._get_t5_prompt_embeds(pipeline, **arguments)
    expected = [row[seen.bool()] for row, seen in zip(rows, mask, strict=True)]
    check(states(f"{t5}?padding=full&mask=real&length=16", CAPTIONS), expected)
    rows, mask = diffusers.ChromaPipeline._get_t5_prompt_embeds(
        pipeline, prompt=CAPTIONS, max_sequence_length=16, device="cpu"
    )
    expected = [row[seen.bool()] for row, seen in zip(rows, mask, strict=True)]
    check(states(f"{t5}?padding=masked&mask=one-more&length=16", CAPTIONS), expected)


@torch.no_grad()
def test_instruction_first_token_case_and_empty_caption_are_those_of_sana(llama: Path) -> None:
    model = transformers.AutoModel.from_pretrained(llama).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    pipeline = diffusers.SanaPipeline(
        text_encoder=model, tokenizer=tokenizer, scheduler=None, vae=None, transformer=None
    )
    rows, mask, *_ = pipeline.encode_prompt(
        CAPTIONS, device="cpu", complex_human_instruction=["the man with a", "cup "], max_sequence_length=8
    )
    value = (
        f"auto:{llama}?length=8&case=lower&keep=first&empty=bare&skip=template-1"
        "&template=the man with a\\ncup {}"
    )
    expected = [row[seen.bool()] for row, seen in zip(rows, mask, strict=True)]
    check(states(value, CAPTIONS), expected)
    plain = open_text_encoder(f"auto:{llama}?length=8").encode([""])[0]["caption_latents"]
    check(states(value, [""]), [torch.from_numpy(plain)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("side=up", "side is one of left, right"),
        ("side=left&skip=2", "leave one of them out"),
        ("multiple=0", "at least 1"),
        ("multiple=4&padding=trim", "leave padding out"),
        ("mask=all", "mask is one of one-more, real"),
    ],
)
def test_options_that_cannot_be_are_named(llama: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--text-encoder .*{message}"):
        open_text_encoder(f"auto:{llama}?{options}")


# --- as models lie on disk ---


def test_cache_as_a_download_leaves_it_is_enough_offline(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No notes of files that are not there, which only a library's own asking leaves."""
    repository = tmp_path / "models--user--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(clip, repository / "snapshots" / COMMIT)
    for name in ("huggingface_hub.constants.HF_HUB_CACHE", "transformers.utils.hub.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(name, str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = open_text_encoder("user/model?layer=-2")
    assert encoder.recipe["revision"] == COMMIT
    expected = open_text_encoder(f"{clip}?layer=-2").encode(CAPTIONS)
    for one, other in zip(encoder.encode(CAPTIONS), expected, strict=True):
        np.testing.assert_array_equal(one["caption_latents"], other["caption_latents"])


def test_variant_weights_are_found_told_and_recorded(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(clip, tmp_path / "m")
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    encoder = open_text_encoder(str(folder))
    assert encoder.recipe["variant"] == "fp16" and "those of variant fp16" in caplog.text
    caplog.clear()
    tiny_models.save_kl(folder)
    plain = open_image_encoder(str(folder)).recipe
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert open_image_encoder(str(folder)).recipe == {**plain, "variant": "fp16"}
    assert "those of variant fp16" in caplog.text
