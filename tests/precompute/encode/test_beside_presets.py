"""Text that a preset does not say by itself, from the command through the shards to the loader: held against pipelines and libraries."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import sentencepiece
import torch
import transformers

from precompute.encode.presets import LUMINA2
from tests.support import tiny_models
from tests.support.hard_captions import CAPTIONS, TINY_RUN, Rows, held, real, save_photos
from tests.support.launching import run_here
from tests.support.tiny_pipelines import SMALL, make_pipeline, scattered, t5, tokenizer_of

Run = Callable[..., str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command, with the toy autoencoder, into `shards`."""

    def call(*flags: str | Path) -> str:
        given = ["builders/folder", "--data-dir", photos, "--output", tmp_path / "shards", *TINY_RUN]
        return run_here(monkeypatch, capsys, *given, "--vae", "toy", *flags)

    return call


@torch.no_grad()
def test_bert_and_mt5_are_those_of_hunyuan_dit(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tmp_path / "model"
    tokenizer = tokenizer_of(
        model / "tokenizer", ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), "[CLS] $A [SEP]", 77,
        pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
    )  # fmt: skip
    bert = transformers.BertConfig(**SMALL, vocab_size=len(tokenizer), num_hidden_layers=2)
    parts = {
        "text_encoder": scattered(transformers.BertModel(bert), model / "text_encoder"),
        "tokenizer": tokenizer,
    }
    parts |= t5(model, "_2", family="MT5")
    assert type(parts["text_encoder_2"]) is transformers.MT5EncoderModel
    others = ("vae", "transformer", "scheduler", "safety_checker", "feature_extractor")
    pipeline = diffusers.HunyuanDiTPipeline(**parts, **dict.fromkeys(others), requires_safety_checker=False)
    pair = (
        "--text-encoder",
        f"auto:{model}?length=77",
        "--text-encoder",
        f"t5={model}?subfolder=text_encoder_2&length=256",
    )
    run(*pair)

    def expected(caption: str, null: bool) -> Rows:
        found = [
            pipeline.encode_prompt(
                caption, "cpu", do_classifier_free_guidance=False, text_encoder_index=index
            )
            for index in (0, 1)
        ]
        return {
            name: real(one[0], one[2])
            for name, one in zip(("caption_latents", "caption_latents_t5"), found, strict=True)
        }

    batch, _ = held(tmp_path / "shards", expected)
    assert batch["caption_latents_t5"].shape[2] == 256, "the longest caption is cut"


@torch.no_grad()
def test_a_tokenizer_of_a_sentencepiece_model_alone_is_that_of_sentencepiece(
    run: Run, tmp_path: Path
) -> None:
    """T5's and PixArt's repositories have it: `spiece.model`, and no `tokenizer.json`."""
    place, text = tmp_path / "model" / "tokenizer", tmp_path / "text.txt"
    pipeline = make_pipeline("pixart-sigma", "PixArtSigmaPipeline", tmp_path / "model", None)
    shutil.rmtree(place)
    place.mkdir()
    text.write_text("\n".join([*CAPTIONS, "a cup on a red table"] * 4).lower())
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(place / "spiece"), vocab_size=90, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (place / "spiece.vocab").unlink()
    about = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    (place / "tokenizer_config.json").write_text(json.dumps(about))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(place / "spiece.model"))
    run("--for", "pixart-sigma", "--model", tmp_path / "model")

    def expected(caption: str, null: bool) -> Rows:
        clean = "" if null else pipeline._text_preprocessing(caption, clean_caption=True)[0]
        ids = [*pieces.encode(clean)[:299], 1]
        assert max(ids) < pipeline.text_encoder.config.vocab_size
        return {"caption_latents": pipeline.text_encoder(torch.tensor([ids])).last_hidden_state[0]}

    held(tmp_path / "shards", expected)


@pytest.mark.parametrize("end", ["", "\n"])
@torch.no_grad()
def test_a_template_out_of_a_file_is_taken_as_it_stands_and_its_last_line_end_is_told(
    end: str, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = make_pipeline("lumina2", "Lumina2Pipeline", tmp_path / "model", None)
    file = tmp_path / "template.txt"
    file.write_text(LUMINA2 + end)
    run("--for", "lumina2", "--model", tmp_path / "model", "--text-encoder", f"?template=@{file}")
    assert caplog.text.count("closes with a line end") == len(end)

    def expected(caption: str, null: bool) -> Rows:
        if not end or null:
            states, mask, *negative = pipeline.encode_prompt(caption, device="cpu")
            return {"caption_latents": real(*negative) if null else real(states, mask)}
        read = LUMINA2.replace("{}", caption) + end
        tokens = pipeline.tokenizer(read, max_length=256, truncation=True, return_tensors="pt")
        hidden = pipeline.text_encoder(**tokens, output_hidden_states=True).hidden_states
        return {"caption_latents": hidden[-2][0]}

    held(tmp_path / "shards", expected)


@pytest.mark.parametrize("skip", [1, 2])
@torch.no_grad()
def test_clip_skip_goes_through_the_final_norm(run: Run, tmp_path: Path, skip: int) -> None:
    pipeline = make_pipeline("sd15", "StableDiffusionPipeline", tmp_path / "model", tiny_vae(tmp_path))
    # diffusers 0.42 looks for the norm where transformers had it before version 5.
    norm = pipeline.text_encoder.final_layer_norm
    pipeline.text_encoder.text_model = SimpleNamespace(final_layer_norm=norm)
    run("--for", "sd15", "--model", tmp_path / "model", "--text-encoder", f"?layer={-1 - skip}&norm")

    def expected(caption: str, null: bool) -> Rows:
        states, _ = pipeline.encode_prompt(caption, "cpu", 1, False, clip_skip=skip)
        return {"caption_latents": states[0]}

    held(tmp_path / "shards", expected)


def tiny_vae(folder: Path) -> Any:
    return diffusers.AutoencoderKL.from_pretrained(tiny_models.save_kl(folder / "kl") / "vae")
