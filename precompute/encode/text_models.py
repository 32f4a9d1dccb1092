"""A text encoder's parts from a folder or the Hub: which class loads it, its weights, its tokenizer."""

from functools import partial
from typing import Any

import torch
import transformers

from precompute.encode.models import Location, in_a_line, load_weights
from precompute.encode.text_spec import Padding, TextSpec
from precompute.errors import ModelError


def load_text_model(
    spec: TextSpec, location: Location, family: Any, dtype: torch.dtype
) -> tuple[Any, str | None]:
    """The model, and the variant of its weights. Raises ModelError."""
    load = partial(
        family.from_pretrained, location.name, dtype=dtype, trust_remote_code=False, **location.arguments
    )
    try:
        model, variant = load_weights(
            f"--text-encoder {spec.model}", load, unused="" if spec.pooled else "pooler."
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"--text-encoder {spec.model}: cannot load it: {in_a_line(error)}") from error
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        model = model.get_encoder()  # the other half writes text
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # keys and values, for writing on
    return model, variant


def text_family(spec: TextSpec, location: Location, auto: bool) -> tuple[Any, Padding]:
    """The class that loads a model, and how its captions are padded."""
    kind, architectures = location.config.get("model_type", ""), location.config.get("architectures") or [""]
    if auto:
        return transformers.AutoModel, "trim"
    if kind in ("clip", "clip_text_model"):
        projected = "WithProjection" in architectures[0]
        return transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel, "full"
    if kind in ("t5", "mt5", "umt5"):
        prefix = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[kind]
        return getattr(transformers, f"{prefix}EncoderModel"), "trim"
    raise ModelError(
        f"--text-encoder {spec.model}: a model of type {kind!r} is neither CLIP nor T5; write auto:{spec.model} "
        "to take its hidden states all the same"
    )


def open_tokenizer(spec: TextSpec, location: Location) -> Any:
    """Its tokenizer, which can pad. Raises ModelError."""
    folder = location.subfolder.replace("text_encoder", "tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            location.tokenizer_place(folder), subfolder=folder, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"--text-encoder {spec.model}: no tokenizer that can be loaded in {folder or 'the same folder'} "
            f"({in_a_line(error)}). Name the folder that has the model and the tokenizer, or one with text_encoder/ and "
            "tokenizer/ in it"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"--text-encoder {spec.model}: its tokenizer has no token to pad with; give its tokenizer_config.json a "
            "pad_token"
        )
    return tokenizer


def final_norm(model: Any, name: str) -> Any:
    """The norm that a model applies to its last layer. Raises ModelError where none is found."""
    for holder in ("", "text_model.", "language_model.", "model.", "encoder."):
        for norm in ("final_layer_norm", "norm", "ln_final"):
            found: Any = model
            for part in f"{holder}{norm}".split("."):
                found = getattr(found, part, None)
            if isinstance(found, torch.nn.Module):
                return found
    raise ModelError(f"--text-encoder {name}: it has no final norm that is known; leave out norm")
