"""Every text encoder gives the library's own states, and each row gets those of its own caption."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

from precompute.encode.batch_encoder import BatchEncoder, EncoderInput
from precompute.encode.caption_cache import CaptionCache
from precompute.encode.image import open_image_encoder
from precompute.encode.text import TextEncoder, open_text_encoder
from precompute.encode.text_spec import parse_text_encoder, text_encoder_value
from precompute.encode.text_states import Launched
from precompute.errors import ModelError, UsageError
from tests.support import tiny_models

CAPTIONS = ["a photograph of a cat", "", "the woman in the cup with a flag", "cup"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_decoder_only(tmp_path_factory.mktemp("llama"))


def library(folder: Path, model_class: Any, captions: list[str], **kwargs: Any) -> Any:
    """The library's forward over one caption at a time, padded as pipelines do; with `trim`, not padded at all."""
    trim, dtype = kwargs.pop("trim", False), kwargs.pop("dtype", torch.float32)
    top = "" if (folder / "config.json").exists() else "text_encoder"
    model = model_class.from_pretrained(folder, subfolder=top, dtype=dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, subfolder=top and "tokenizer")
    padding = {} if trim else {"padding": "max_length", "max_length": 77}
    tokens = [
        tokenizer([text], truncation=True, return_tensors="pt", **padding).input_ids for text in captions
    ]
    with torch.no_grad():
        return [model(ids, **kwargs) for ids in tokens]


def check(found: np.ndarray, expected: torch.Tensor) -> None:
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=2e-3)


def test_clip_gives_the_last_hidden_state_of_all_tokens(clip: Path) -> None:
    encoder = open_text_encoder(str(clip))
    assert [(f.name, f.shape) for f in encoder.fields] == [("caption_latents", (77, 16))]
    for arrays, out in zip(
        encoder.encode(CAPTIONS), library(clip, transformers.CLIPTextModel, CAPTIONS), strict=True
    ):
        check(arrays["caption_latents"], out.last_hidden_state[0])


@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_layer_counts_as_the_library_does(clip: Path, layer: int) -> None:
    encoder = open_text_encoder(f"{clip}?layer={layer}")
    outs = library(clip, transformers.CLIPTextModel, CAPTIONS, output_hidden_states=True)
    for arrays, out in zip(encoder.encode(CAPTIONS), outs, strict=True):
        expected = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
        check(arrays["caption_latents"], expected[0])


def test_pooled_is_the_library_s_pooler_output(clip: Path) -> None:
    encoder = open_text_encoder(f"l={clip}?pooled")
    assert [(f.name, f.kind, f.shape) for f in encoder.fields] == [
        ("caption_latents_l", "caption_latents", (77, 16)),
        ("caption_pooled_l", "caption_pooled", (16,)),
    ]
    for arrays, out in zip(
        encoder.encode(CAPTIONS), library(clip, transformers.CLIPTextModel, CAPTIONS), strict=True
    ):
        check(arrays["caption_pooled_l"], out.pooler_output[0])


def test_pooled_of_a_projected_model_is_the_projection(tmp_path: Path) -> None:
    folder = tiny_models.save_clip(tmp_path, projection=True)
    outs = library(folder, transformers.CLIPTextModelWithProjection, CAPTIONS)
    for arrays, out in zip(open_text_encoder(f"{folder}?pooled").encode(CAPTIONS), outs, strict=True):
        check(arrays["caption_pooled"], out.text_embeds[0])


def test_t5_keeps_the_real_tokens_alone(t5: Path) -> None:
    encoder = open_text_encoder(f"t5={t5}")
    assert [(f.name, f.shape) for f in encoder.fields] == [("caption_latents_t5", (None, 16))]
    outs = library(t5, transformers.T5EncoderModel, CAPTIONS, trim=True)
    lengths = []
    for arrays, out in zip(encoder.encode(CAPTIONS), outs, strict=True):
        check(arrays["caption_latents_t5"], out.last_hidden_state[0])
        lengths.append(len(arrays["caption_latents_t5"]))
    assert lengths == [6, 1, 9, 2], "words and the end token"


def test_length_cuts_long_captions(t5: Path, clip: Path) -> None:
    encoder = open_text_encoder(f"{t5}?length=4")
    assert [len(a["caption_latents"]) for a in encoder.encode(CAPTIONS)] == [4, 1, 4, 2]
    (cut,) = encoder.encode(["a photograph of a cat"])
    (whole,) = encoder.encode(["a photograph of"])
    np.testing.assert_allclose(cut["caption_latents"], whole["caption_latents"], atol=2e-3)
    assert open_text_encoder(f"{clip}?length=20").encode(["a cat"])[0]["caption_latents"].shape == (20, 16)
    with pytest.raises(UsageError, match="length 100 is more than the model's 77"):
        open_text_encoder(f"{clip}?length=100")


def test_decoder_only_model_by_auto(llama: Path) -> None:
    encoder = open_text_encoder(f"auto:{llama}?layer=-2")
    texts = [text for text in CAPTIONS if text]
    outs = library(llama, transformers.AutoModel, texts, trim=True, output_hidden_states=True)
    for arrays, out in zip(encoder.encode(texts), outs, strict=True):
        check(arrays["caption_latents"], out.hidden_states[-2][0])
    assert encoder.encode([""])[0]["caption_latents"].shape == (1, 16), "one padding token"


def test_encoder_half_by_auto(tmp_path: Path) -> None:
    size = tiny_models.save_word_tokenizer(tmp_path, end=True)
    config = transformers.T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    torch.manual_seed(4)
    transformers.T5Model(config).save_pretrained(tmp_path)
    encoder = open_text_encoder(f"auto:{tmp_path}")
    outs = library(tmp_path, transformers.T5EncoderModel, CAPTIONS, trim=True)
    for arrays, out in zip(encoder.encode(CAPTIONS), outs, strict=True):
        check(arrays["caption_latents"], out.last_hidden_state[0])


# --- as the pipelines of 2026 read a caption, held against their own methods ---

TEMPLATE, PREFIX = "the man with {} in a cup", 3  # of the template's tokens, those before the caption


def language_model(folder: Path) -> tuple[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="right")
    tokenizer.chat_template = TEMPLATE.replace("{}", "{{ messages[0].content }}")
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def test_template_and_skip_are_those_of_qwen_image(llama: Path) -> None:
    tokenizer, model = language_model(llama)
    pipeline = SimpleNamespace(
        tokenizer=tokenizer, text_encoder=model, prompt_template_encode=TEMPLATE, tokenizer_max_length=8,
        prompt_template_encode_start_idx=PREFIX, _execution_device="cpu",
        _extract_masked_hidden=partial(diffusers.QwenImagePipeline._extract_masked_hidden, None),
    )  # fmt: skip
    captions = [*CAPTIONS, "a cat " * 10]
    expected, mask = diffusers.QwenImagePipeline._get_qwen_prompt_embeds(pipeline, captions)
    encoder = open_text_encoder(f"auto:{llama}?skip={PREFIX}&length=8&template={TEMPLATE}")
    found = encoder.encode(captions)
    assert [len(arrays["caption_latents"]) for arrays in found] == mask.sum(1).tolist() == [8, 3, 8, 4, 8]
    for arrays, states in zip(found, expected, strict=True):
        check(arrays["caption_latents"], states[: len(arrays["caption_latents"])])


@torch.no_grad()
def test_layers_and_masked_padding_are_those_of_flux_2(llama: Path, tmp_path: Path) -> None:
    tokenizer, model = language_model(llama)
    expected = diffusers.Flux2KleinPipeline._get_qwen3_prompt_embeds(
        model, tokenizer, CAPTIONS, max_sequence_length=20, hidden_states_layers=(0, 2, 1)
    )
    (tmp_path / "template.txt").write_text(TEMPLATE)
    options = f"layer=0,2,1&padding=masked&length=20&template=@{tmp_path / 'template.txt'}"
    encoder = open_text_encoder(f"auto:{llama}?{options}")
    assert [field.shape for field in encoder.fields] == [(20, 48)]
    for arrays, states in zip(encoder.encode(CAPTIONS), expected, strict=True):
        check(arrays["caption_latents"], states)


@torch.no_grad()
def test_full_padding_of_t5_is_that_of_flux_1(t5: Path) -> None:
    pipeline = SimpleNamespace(
        tokenizer_2=transformers.AutoTokenizer.from_pretrained(t5 / "tokenizer"),
        text_encoder_2=transformers.T5EncoderModel.from_pretrained(t5 / "text_encoder"),
        _execution_device="cpu",
    )
    expected = diffusers.FluxPipeline._get_t5_prompt_embeds(
        pipeline, CAPTIONS, max_sequence_length=12, dtype=torch.float32
    )
    encoder = open_text_encoder(f"{t5}?padding=full&length=12")
    assert [field.shape for field in encoder.fields] == [(12, 16)]
    for arrays, states in zip(encoder.encode(CAPTIONS), expected, strict=True):
        check(arrays["caption_latents"], states)
    (trimmed,) = open_text_encoder(str(t5)).encode(["cup"])
    assert not np.allclose(arrays["caption_latents"][:2], trimmed["caption_latents"], atol=0.01), (
        "it looks at padding"
    )


@pytest.mark.parametrize(
    "options", ["", "layer=0,2&padding=masked", "skip=3&length=9&template=the man with {}\\n & a cup %2B"]
)
def test_encoder_can_be_opened_again_from_its_recipe(llama: Path, options: str) -> None:
    options = options.replace(" & ", " %26 ")
    recipe = open_text_encoder(f"t=auto:{llama}?{options}").recipe
    value = text_encoder_value(json.loads(json.dumps(recipe)), str(llama))
    assert open_text_encoder(value).recipe == recipe


def test_full_padding_is_behind_the_caption_whatever_the_tokenizer_prefers(tmp_path: Path) -> None:
    """`skip` would drop padding of a tokenizer that pads on the left, as Llama's does."""
    folder = tiny_models.save_decoder_only(tmp_path)
    encoder = open_text_encoder(f"auto:{folder}?padding=full&skip=2&length=6&template=the man {{}}")
    right = encoder.encode(["a cat"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    left = open_text_encoder(f"auto:{folder}?padding=full&skip=2&length=6&template=the man {{}}").encode(
        ["a cat"]
    )
    np.testing.assert_array_equal(left[0]["caption_latents"], right[0]["caption_latents"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("template=no place", "must hold {} once"),
        ("template=@nowhere.txt", "cannot read the template"),
        ("padding=left", "padding is one of full, masked, trim"),
        ("skip=-1", "skip counts tokens"),
        ("skip=4&template=a {}", "skip=4 leaves nothing of an empty caption"),
        ("layer=1,x", "whole numbers"),
        ("layer=9", "no layer 9; it has 2"),
        ("colour=red", "unknown .'colour'."),
    ],
)
def test_options_that_cannot_be_are_named(llama: Path, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--text-encoder .*{message}"):
        open_text_encoder(f"auto:{llama}?{options}")


def test_model_that_is_not_of_text_is_refused(tmp_path: Path) -> None:
    tiny_models.save_word_tokenizer(tmp_path, end=True)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no hidden states for text alone .*name a text model"):
        open_text_encoder(f"auto:{tmp_path}")


def test_toy_has_no_mask() -> None:
    with pytest.raises(UsageError, match="leave padding out"):
        open_text_encoder("toy?padding=trim")


def test_unknown_family_says_how_to_take_it_all_the_same(llama: Path) -> None:
    with pytest.raises(ModelError, match=f"auto:{llama}"):
        open_text_encoder(str(llama))


def test_recipe_holds_all_that_changes_a_state(clip: Path) -> None:
    plain = open_text_encoder(str(clip)).recipe
    for option, name in (("layer=-2", "layer"), ("length=20", "length"), ("pooled", "pooled")):
        other = open_text_encoder(f"{clip}?{option}").recipe
        assert {key for key in plain if plain[key] != other[key]} == {name}


def test_value_names_encoder_model_and_options() -> None:
    spec = parse_text_encoder("g=user/model@v1?subfolder=text_encoder_2&layer=-2&length=77&pooled")
    assert vars(spec) == {
        "name": "g", "model": "user/model@v1", "subfolder": "text_encoder_2", "layers": (-2,), "length": 77, "pooled": True,
        "padding": None, "template": "{}", "skip": 0, "counted": False, "side": "right", "multiple": None, "mask": None, "norm": False,
        "case": None, "keep": None, "empty": None, "clean": None, "quoted": False, "states": True,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["clip", "t5", "llama"])
@torch.no_grad()
def test_half_precision_is_the_library_s(kind: str, dtype: str, clip: Path, t5: Path, llama: Path) -> None:
    folder = {"clip": clip, "t5": t5, "llama": llama}[kind]
    family = {
        "clip": transformers.CLIPTextModel,
        "t5": transformers.T5EncoderModel,
        "llama": transformers.AutoModel,
    }
    encoder = open_text_encoder(f"{'auto:' if kind == 'llama' else ''}{folder}", dtype=dtype)
    texts = [text for text in CAPTIONS if text]
    outs = library(folder, family[kind], texts, trim=kind != "clip", dtype=getattr(torch, dtype))
    for arrays, out in zip(encoder.encode(texts), outs, strict=True):
        expected = out.last_hidden_state[0].float()
        np.testing.assert_allclose(
            arrays["caption_latents"], expected, atol=8 * torch.finfo(getattr(torch, dtype)).eps
        )


@torch.no_grad()
def test_what_the_library_keeps_in_float32_stays_so(tmp_path: Path) -> None:
    """T5's feed-forward outputs pass what float16 holds; its blocks clamp what is infinite, and nothing would show."""
    folder = tiny_models.save_t5(tmp_path)
    model = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder")
    for name, parameter in model.named_parameters():
        if ".wo." in name:
            parameter.data *= 5e4
    model.save_pretrained(folder / "text_encoder")
    whole = library(folder, transformers.T5EncoderModel, CAPTIONS, trim=True)
    for arrays, out in zip(
        open_text_encoder(str(folder), dtype="float16").encode(CAPTIONS), whole, strict=True
    ):
        np.testing.assert_allclose(arrays["caption_latents"], out.last_hidden_state[0], atol=0.02)


def test_recipe_tells_other_configs_and_tokenizers_apart(tmp_path: Path) -> None:
    folder = tiny_models.save_decoder_only(tmp_path)
    before = open_text_encoder(f"auto:{folder}").recipe
    config = folder / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"transformers_version": "', '"transformers_version": "9'))
    assert open_text_encoder(f"auto:{folder}").recipe == before, "who wrote it does not matter"
    config.write_text(text.replace('"hidden_act": "silu"', '"hidden_act": "gelu"'))
    after = open_text_encoder(f"auto:{folder}").recipe
    assert {name for name in before if before[name] != after[name]} == {"config"}
    config.write_text(text)
    tokens = folder / "tokenizer.json"
    tokens.write_text(
        tokens.read_text().replace('"cat"', '"x"').replace('"cup"', '"cat"').replace('"x"', '"cup"')
    )
    after = open_text_encoder(f"auto:{folder}").recipe
    assert {name for name in before if before[name] != after[name]} == {"tokenizer"}


# --- rows and captions ---


class Counting(TextEncoder):
    """Remembers what it was asked to encode."""

    def launch(self, captions: Any, dtype: torch.dtype | None = None) -> Launched:
        asked.append(list(captions))
        return super().launch(captions, dtype)


asked: list[list[str]] = []


@pytest.fixture
def batches(t5: Path) -> BatchEncoder:
    """The toy images with a T5 whose calls are counted."""
    encoder = open_text_encoder(str(t5))
    encoder.__class__ = type("CountingT5", (Counting, type(encoder)), {})
    found = BatchEncoder(open_image_encoder("toy"), [encoder], [8], "moments", 0)
    asked.clear()
    return found


def rows(captions: list[str]) -> list[EncoderInput]:
    return [
        EncoderInput(f"k{i}", [text], {8: np.zeros((8, 8, 3), np.uint8)}) for i, text in enumerate(captions)
    ]


def test_rows_get_the_states_of_their_own_caption_and_each_is_encoded_once(
    batches: BatchEncoder, t5: Path
) -> None:
    first, second = ["cat", "cup", "cat", "woman in a cup"], ["cup", "man", "cat", "man"]
    got = [*batches.collect(batches.launch(rows(first))), *batches.collect(batches.launch(rows(second)))]
    assert asked == [["cat", "cup", "woman in a cup"], ["man"]]
    alone = open_text_encoder(str(t5))
    for caption, encoded in zip(first + second, got, strict=True):
        np.testing.assert_allclose(
            encoded.arrays["caption_latents"], alone.encode([caption])[0]["caption_latents"], atol=2e-3
        )
    batches.start_unit()
    batches.launch(rows(["cat"]))
    assert asked[-1] == ["cat"], "a unit depends on nothing outside of it"


def test_cache_of_captions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precompute.encode.caption_cache.CACHED_BYTES", 10_000)
    cache = CaptionCache()
    for number in range(50):
        texts = [f"{number}-{i}" for i in range(4)]
        states, finite = torch.zeros(4, 10, 50, dtype=torch.float16), torch.ones(4, dtype=torch.bool)
        cache.add(texts, [Launched(states, None, finite, [10] * 4)])
        assert [row for _, row in cache.find(texts)] == [0, 1, 2, 3]
    assert cache.unknown(["0-0", "47-3", "48-0", "49-3"]) == ["0-0", "47-3"], "two batches of 4,000 bytes"


class Loud(torch.nn.Module):
    """Hidden states of 2,000 a letter, where float16 ends at 65,504; without `stays`, on the way only."""

    def __init__(self, stays: bool) -> None:
        super().__init__()
        self.stays = stays
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.config = SimpleNamespace(max_position_embeddings=4)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        states = input_ids[..., None] * self.weight * 2000
        return SimpleNamespace(last_hidden_state=states if self.stays else states / 2000)


class Letters:
    model_max_length = 4

    def __call__(self, captions: list[str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=torch.tensor([[len(text)] * 4 for text in captions]))


@pytest.mark.parametrize("stays", [False, True])
def test_caption_that_overflows_is_computed_again_in_wider_precision_or_rejected(stays: bool) -> None:
    spec = parse_text_encoder("loud")
    encoder = TextEncoder(spec, Loud(stays).half(), Letters(), {}, torch.device("cpu"), torch.float16)
    batches = BatchEncoder(open_image_encoder("toy"), [encoder], [8], "moments", 0)
    results = batches.collect(batches.launch(rows(["short", "x" * 60, "again"])))
    assert [result is None for result in results] == [False, stays, False]
    if not stays:
        np.testing.assert_array_equal(results[1].arrays["caption_latents"], np.full((4, 1), 60))


def test_no_memory_for_a_second_precision_costs_the_row_alone(caplog: pytest.LogCaptureFixture) -> None:
    def full(dtype: torch.dtype) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 19.00 GiB")

    spec, cpu = parse_text_encoder("loud"), torch.device("cpu")
    encoder = TextEncoder(spec, Loud(False).half(), Letters(), {}, cpu, torch.float16, load=full)
    batches = BatchEncoder(open_image_encoder("toy"), [encoder], [8], "moments", 0)
    results = batches.collect(batches.launch(rows(["short", "x" * 60, "again"])))
    assert [result is None for result in results] == [False, True, False]
    assert "no memory to compute a row again" in caplog.text


def save_with(folder: Path, name: str, **changes: Any) -> None:
    """Change a model's .json on disk."""
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("padding", ["", "?padding=full"])
def test_a_tokenizer_that_pads_on_the_left_gives_the_same(tmp_path: Path, padding: str) -> None:
    folder = tiny_models.save_decoder_only(tmp_path)
    captions = ["a cat", "the woman in the cup with a flag", "a photograph of a cat"]
    found = {}
    for side in ("right", "left"):
        save_with(folder, "tokenizer_config.json", padding_side=side)
        found[side] = open_text_encoder(f"auto:{folder}{padding}").encode(captions)
    for left, right in zip(found["left"], found["right"], strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(left[name], right[name], atol=1e-3)


@pytest.mark.parametrize(("positions", "expected"), [(20, 18), (1000, 998)])
def test_what_is_skipped_counts_among_the_positions_of_a_model(
    tmp_path: Path, positions: int, expected: int
) -> None:
    folder = tiny_models.save_decoder_only(tmp_path)
    save_with(folder, "config.json", max_position_embeddings=positions)
    save_with(folder, "tokenizer_config.json", model_max_length=1000)
    encoder = open_text_encoder(f"auto:{folder}?padding=full&skip=2&template=the man {{}}")
    assert encoder.length == min(expected, 512)
