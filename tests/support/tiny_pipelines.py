"""Text pipelines of diffusers, of tiny random parts in their real classes, each with as many layers as its preset counts.

Every part is saved to a folder as a pipeline has it, which is what `--model FOLDER` reads.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.clip import CLIPTokenizer

TEXT = [
    "a photograph of two cats sleeping on a red sofa beside a coffee cup, highly detailed",
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects",
    "You are an assistant designed to generate superior images; user system prompt: enhanced description",
]
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
QWEN_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MISTRAL_TURNS = (
    "{{ bos_token }}{% for m in messages %}{% set text = m.content[0].text %}"
    "{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ text }}[/SYSTEM_PROMPT]{% else %}[INST]{{ text }}[/INST]{% endif %}"
    "{% endfor %}"
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
DECODER = {**SMALL, "num_key_value_heads": 2, "head_dim": 8}


def scattered(model: Any, folder: Path) -> Any:
    """The model saved and ready, no weight of it at the value that it is made with."""
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model.eval()


@functools.cache
def _trained(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options: dict[str, Any] = {"vocab_size": 400, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator(TEXT * 3, trainers.BpeTrainer(special_tokens=list(special), **options))
    return str(tokenizer.to_str())


def tokenizer_of(
    folder: Path, special: Sequence[str], around: str = "$A", most: int = 131072, **options: Any
) -> Any:
    """Byte-level BPE with these special tokens. around: what it puts about a text, as `<s> $A`."""
    tokenizer = Tokenizer.from_str(_trained(tuple(special)))
    ids = [(token, tokenizer.token_to_id(token)) for token in special if token in around.split()]
    if ids:
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    turns = options.pop("chat_template", None)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=most, additional_special_tokens=list(special), **options
    )
    fast.chat_template = turns
    fast.save_pretrained(folder)
    return fast


def clip(
    folder: Path, number: str = "", projection: bool = False, positions: int = 77, pad: str = "<|endoftext|>"
) -> dict[str, Any]:
    """`text_encoderNUMBER` and `tokenizerNUMBER`; the second of a pipeline is wider and pads with another token."""
    place = folder / f"tokenizer{number}"
    place.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (place / "merges.txt").write_text("#version: 0.2\n")
    files = (str(place / "vocab.json"), str(place / "merges.txt"))
    tokenizer = CLIPTokenizer(*files, model_max_length=positions, pad_token=pad)
    tokenizer.save_pretrained(place)
    wide = {"hidden_size": 24, "hidden_act": "gelu"} if number else {}
    config = transformers.CLIPTextConfig(
        **{**SMALL, **wide}, vocab_size=len(tokens), projection_dim=12, num_hidden_layers=3, bos_token_id=0, eos_token_id=2,
        pad_token_id=1, max_position_embeddings=positions,
    )  # fmt: skip
    family = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    model = scattered(family(config), folder / f"text_encoder{number}")
    return {f"text_encoder{number}": model, f"tokenizer{number}": tokenizer}


def t5(folder: Path, number: str = "", family: str = "T5", width: int = 16) -> dict[str, Any]:
    tokenizer = tokenizer_of(
        folder / f"tokenizer{number}", ("<pad>", "</s>", "<unk>"), "$A </s>", 512,
        pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip
    return {
        f"text_encoder{number}": _t5(folder / f"text_encoder{number}", family, width, len(tokenizer)),
        f"tokenizer{number}": tokenizer,
    }


def _t5(place: Path, family: str, width: int, words: int) -> Any:
    config = getattr(transformers, f"{family}Config")(
        vocab_size=words, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )  # fmt: skip
    return scattered(getattr(transformers, f"{family}EncoderModel")(config), place)


def byt5(folder: Path) -> dict[str, Any]:
    tokenizer = transformers.ByT5Tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer_2")
    model = _t5(folder / "text_encoder_2", "T5", 16, len(tokenizer))
    return {"text_encoder_2": model, "tokenizer_2": tokenizer}


def qwen_tokenizer(folder: Path) -> Any:
    return tokenizer_of(
        folder / "tokenizer", CHAT, pad_token="<|endoftext|>", eos_token="<|im_end|>", chat_template=QWEN_TURNS
    )  # fmt: skip


def qwen3(folder: Path, layers: int) -> dict[str, Any]:
    tokenizer = qwen_tokenizer(folder)
    config = transformers.Qwen3Config(**DECODER, vocab_size=len(tokenizer), num_hidden_layers=layers)
    model = scattered(transformers.Qwen3ForCausalLM(config), folder / "text_encoder")
    return {"text_encoder": model, "tokenizer": tokenizer}


def qwen25vl(folder: Path) -> dict[str, Any]:
    tokenizer = qwen_tokenizer(folder)
    words = len(tokenizer)
    text = {
        **{k: v for k, v in DECODER.items() if k != "head_dim"}, "vocab_size": words, "num_hidden_layers": 4,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "max_position_embeddings": 128000,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=words - 1, video_token_id=words - 2,
        vision_start_token_id=words - 3, vision_end_token_id=words - 4,
    )  # fmt: skip
    family = transformers.Qwen2_5_VLForConditionalGeneration
    return {
        "text_encoder": scattered(family(config), folder / "text_encoder"),
        "tokenizer": tokenizer,
    }


def gemma2(folder: Path) -> dict[str, Any]:
    tokenizer = tokenizer_of(
        folder / "tokenizer", ("<pad>", "<eos>", "<bos>"), "<bos> $A", pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )  # fmt: skip
    config = transformers.Gemma2Config(**DECODER, vocab_size=len(tokenizer), num_hidden_layers=3)
    model = scattered(transformers.Gemma2Model(config), folder / "text_encoder")
    return {"text_encoder": model, "tokenizer": tokenizer}


def llama(folder: Path) -> dict[str, Any]:
    """A model of 32 layers, all of which HiDream takes."""
    tokenizer = tokenizer_of(
        folder / "tokenizer_4", ("<|begin_of_text|>", "<|eot_id|>"), "<|begin_of_text|> $A",
        bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|eot_id|>",
    )  # fmt: skip
    config = transformers.LlamaConfig(**DECODER, vocab_size=len(tokenizer), num_hidden_layers=32)
    model = scattered(transformers.LlamaForCausalLM(config), folder / "text_encoder_4")
    return {"text_encoder_4": model, "tokenizer_4": tokenizer}


def mistral3(folder: Path) -> dict[str, Any]:
    """FLUX.2-dev's: a tokenizer that pads on the left, and more layers than the 30th."""
    special = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    tokenizer = tokenizer_of(
        folder / "tokenizer", special, "<s> $A", bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", chat_template=MISTRAL_TURNS,
    )  # fmt: skip
    text = {**DECODER, "model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 31}
    vision = {
        **SMALL,
        "model_type": "pixtral",
        "num_hidden_layers": 1,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=9)
    model = scattered(transformers.Mistral3ForConditionalGeneration(config), folder / "text_encoder")
    return {"text_encoder": model, "tokenizer": tokenizer}


def glm(folder: Path) -> dict[str, Any]:
    tokenizer = tokenizer_of(
        folder / "tokenizer", ("<|endoftext|>", "[gMASK]", "<sop>"), "[gMASK] <sop> $A",
        pad_token="<|endoftext|>", eos_token="<|endoftext|>", padding_side="left",
    )  # fmt: skip
    config = transformers.GlmConfig(**DECODER, vocab_size=len(tokenizer), num_hidden_layers=3, pad_token_id=0)
    model = scattered(transformers.GlmModel(config), folder / "text_encoder")
    return {"text_encoder": model, "tokenizer": tokenizer}


def sdxl_parts(folder: Path, projection: bool = False) -> dict[str, Any]:
    return clip(folder, projection=projection) | clip(folder, "_2", projection=True, pad="!")


def hidream_parts(folder: Path) -> dict[str, Any]:
    first, second = clip(folder, projection=True, positions=248), clip(folder, "_2", True, positions=218)
    return first | second | t5(folder, "_3") | llama(folder)


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "sd15": clip,
    "sdxl": sdxl_parts,
    "sd3": lambda folder: sdxl_parts(folder, projection=True) | t5(folder, "_3", width=64),
    "flux1": lambda folder: clip(folder) | t5(folder, "_2"),
    "flux2-dev": mistral3,
    "flux2-klein": lambda folder: qwen3(folder, 28),
    "qwen-image": qwen25vl,
    "z-image": lambda folder: qwen3(folder, 4),
    "sana": gemma2,
    "pixart-sigma": t5,
    "lumina2": gemma2,
    "hunyuan-image": lambda folder: qwen25vl(folder) | byt5(folder),
    "wan": lambda folder: t5(folder, family="UMT5"),
    "chroma": t5,
    "kandinsky5": lambda folder: qwen25vl(folder) | clip(folder, "_2"),
    "hidream": hidream_parts,
    "auraflow": lambda folder: t5(folder, family="UMT5"),
    "cogview4": glm,
    "ltx": t5,
}


def make_pipeline(name: str, family: str, folder: Path, vae: Any) -> Any:
    """The pipeline of a preset, of parts that lie in the folder; what reads no prompt and no picture is left out."""
    torch.manual_seed(sum(map(ord, name)))
    cls = getattr(diffusers, family)
    parts = {**PARTS[name](folder), "vae": vae}
    return cls(**parts, **dict.fromkeys(_left_out(cls, parts)))


def _left_out(cls: Any, parts: dict[str, Any]) -> Iterator[str]:
    import inspect

    for parameter in inspect.signature(cls.__init__).parameters.values():
        required = parameter.default is parameter.empty or parameter.default is None
        if parameter.name not in ("self", *parts) and required:
            yield parameter.name
