"""Text encoders: captions -> hidden states, one class a family of models.

    --text-encoder [NAME=]ID[@REVISION][?subfolder=S&layer=N&length=T&pooled]

layer: which hidden state, counted as transformers does (-1 the last, after the final norm; -2 the one before).
length: tokens at most. pooled: store the pooled vector too. The first encoder writes `caption_latents`, one called NAME
`caption_latents_NAME`.
"""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import numpy.typing as npt
import torch
import transformers

from loader.format import Field, text_field_name
from precompute.encoders import DTYPES
from precompute.errors import ModelError, UsageError
from precompute.models import in_a_line, locate, weights_hash
from precompute.openclip import open_openclip
from precompute.toy import ToyTokenizer, toy_text_model

Float16 = npt.NDArray[np.float16]


@dataclass(frozen=True)
class TextSpec:
    """A parsed `--text-encoder`. None: the model's own default."""

    name: str
    model: str
    subfolder: str | None = None
    layer: int = -1
    length: int | None = None
    pooled: bool = False


def parse_text_encoder(value: str) -> TextSpec:
    """Raises UsageError, naming the part that is wrong."""
    front, _, query = value.partition("?")
    name, separator, model = front.rpartition("=")
    if not model or (separator and not re.fullmatch(r"[A-Za-z0-9_-]+", name)):
        raise UsageError(
            f"--text-encoder {value}: write it [NAME=]ID[?layer=-2&length=77&pooled]; NAME is letters, digits, _ -"
        )
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    unknown = options.keys() - {"subfolder", "layer", "length", "pooled"}
    if unknown:
        raise UsageError(
            f"--text-encoder {value}: unknown {sorted(unknown)}; there are subfolder, layer, length, pooled"
        )
    try:
        layer, length = int(options.get("layer", -1)), int(options["length"]) if "length" in options else None
    except ValueError as error:
        raise UsageError(f"--text-encoder {value}: layer and length are whole numbers") from error
    if length is not None and length < 2:
        raise UsageError(f"--text-encoder {value}: length must be at least 2 tokens")
    return TextSpec(name, model, options.get("subfolder"), layer, length, "pooled" in options)


@dataclass(frozen=True)
class Launched:
    """Results on their way from the device: states (B, T, D) and pooled (B, P), float16; lengths in tokens."""

    states: torch.Tensor
    pooled: torch.Tensor | None
    lengths: list[int]

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def arrays(self, row: int, fields: Sequence[Field]) -> dict[str, Float16]:
        """One caption's arrays by field name. Only once the device is done."""
        found = {"caption_latents": self.states[row, : self.lengths[row]].numpy()}
        if self.pooled is not None:
            found["caption_pooled"] = self.pooled[row].numpy()
        return {field.name: found[field.kind] for field in fields}


class TextEncoder:
    """A CLIP text model: every caption padded to the full length, no mask, as the models were trained.

    length: T, tokens a caption takes at most. dim: D of a hidden state.
    fields: what it writes; T is None in their shape where only the real tokens are kept.
    """

    trims = False

    def __init__(
        self,
        spec: TextSpec,
        model: Any,
        tokenizer: Any,
        recipe: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.spec, self.device, self.dtype = spec, device, dtype
        self._models = {dtype: model.to(device, dtype).eval().requires_grad_(False)}
        self._tokenizer = tokenizer
        self.length = self._length(spec.length, model, tokenizer)
        try:
            probe = self.launch([""])
        except IndexError as error:
            layers = getattr(model.config, "num_hidden_layers", "fewer")
            raise UsageError(
                f"--text-encoder {spec.model}: no layer {spec.layer}; it has {layers}"
            ) from error
        if spec.pooled and probe.pooled is None:
            raise ModelError(f"--text-encoder {spec.model}: it has no pooled output; leave out pooled")
        shape = (None if self.trims else self.length, probe.states.shape[-1])
        self.fields = [Field(text_field_name("latents", spec.name), "caption_latents", "float16", shape)]
        if probe.pooled is not None:
            name, dim = text_field_name("pooled", spec.name), probe.pooled.shape[-1]
            self.fields.append(Field(name, "caption_pooled", "float16", (dim,)))
        self.recipe = {
            **recipe,
            "name": spec.name,
            "dtype": str(dtype).removeprefix("torch."),
            "layer": spec.layer,
            "length": self.length,
            "padding": "trimmed" if self.trims else "max_length",
            "pooled": spec.pooled,
        }

    def encode(self, captions: Sequence[str], dtype: torch.dtype | None = None) -> list[dict[str, Float16]]:
        """Arrays by field name for each caption: hidden states (T, D), and (P,) where `pooled` is asked for.

        Captions of more than `length` tokens are cut. dtype: compute in this one rather than in the encoder's own.
        """
        launched = self.launch(captions, dtype)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return [launched.arrays(row, self.fields) for row in range(len(captions))]

    @torch.inference_mode()
    def launch(self, captions: Sequence[str], dtype: torch.dtype | None = None) -> Launched:
        """Start `encode` on the device without waiting for it."""
        dtype = dtype or self.dtype
        if dtype not in self._models:
            self._models[dtype] = copy.deepcopy(self._models[self.dtype]).to(dtype)
        tokens = self._tokenize(list(captions))
        mask = tokens.attention_mask if self.trims else None
        output = self._models[dtype](
            input_ids=tokens.input_ids.to(self.device, non_blocking=True),
            attention_mask=None if mask is None else mask.to(self.device, non_blocking=True),
            output_hidden_states=self.spec.layer != -1,
        )
        hidden = output.last_hidden_state if self.spec.layer == -1 else output.hidden_states[self.spec.layer]
        pooled = None
        if self.spec.pooled:
            pooled = getattr(output, "text_embeds", None)
            pooled = getattr(output, "pooler_output", None) if pooled is None else pooled
        return Launched(
            states=hidden.to(torch.float16).to("cpu", non_blocking=True),
            pooled=None if pooled is None else pooled.to(torch.float16).to("cpu", non_blocking=True),
            lengths=[self.length] * len(captions) if mask is None else mask.sum(1).tolist(),
        )

    def _length(self, asked: int | None, model: Any, tokenizer: Any) -> int:
        most = int(getattr(model.config, "max_position_embeddings", tokenizer.model_max_length))
        if asked and asked > most:
            raise UsageError(
                f"--text-encoder {self.spec.model}: length {asked} is more than the model's {most} tokens"
            )
        return asked or most

    def _tokenize(self, captions: list[str]) -> Any:
        return self._tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )


class MaskedTextEncoder(TextEncoder):
    """T5 and every other model that is given an attention mask: only the real tokens are kept.

    What a token's state is does not depend on the padding behind it, so trimming loses nothing; the loader makes the
    mask from the length.
    """

    trims = True

    def _length(self, asked: int | None, model: Any, tokenizer: Any) -> int:
        return asked or min(int(tokenizer.model_max_length), 512)

    def _tokenize(self, captions: list[str]) -> Any:
        tokens = self._tokenizer(
            captions,
            padding=True,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
            padding_side="right",
        )
        if not tokens.input_ids.shape[1]:
            tokens = self._tokenizer(captions, padding="max_length", max_length=1, return_tensors="pt")
        # A tokenizer that adds no special token makes nothing of an empty caption: it becomes one padding token.
        tokens["attention_mask"][:, 0] = 1
        return tokens


def open_text_encoder(value: str, device: torch.device | str = "cpu", dtype: str = "float32") -> TextEncoder:
    """The encoder that one `--text-encoder` names: `toy`, a folder, or a Hub id; `text_encoder` and `tokenizer`
    subfolders, as diffusers pipelines have them, are found by themselves.

    CLIP and T5 families go by their name; `auto:ID` takes any other transformers model that gives hidden states;
    `openclip:NAME` one of OpenCLIP (precompute/openclip.py).
    Raises ModelError or UsageError.
    """
    spec, device, torch_dtype = parse_text_encoder(value), torch.device(device), DTYPES[dtype]
    model: Any
    tokenizer: Any
    if spec.model == "toy":
        model = toy_text_model()
        recipe = {"model": "toy", "weights": weights_hash(model)}
        return TextEncoder(spec, model, ToyTokenizer(), recipe, device, torch_dtype)
    if spec.model.startswith("openclip:"):
        model, tokenizer = open_openclip(spec.model)
        recipe = {"model": spec.model, "weights": weights_hash(model)}
        return TextEncoder(spec, model, tokenizer, recipe, device, torch_dtype)
    auto = spec.model.startswith("auto:")
    location = locate("--text-encoder", spec.model.removeprefix("auto:"), [spec.subfolder or "text_encoder"])
    kind, architectures = location.config.get("model_type", ""), location.config.get("architectures") or [""]
    family: type[TextEncoder]
    if auto:
        loader, family = transformers.AutoModel, MaskedTextEncoder
    elif kind in ("clip", "clip_text_model"):
        projected = "WithProjection" in architectures[0]
        loader = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
        family = TextEncoder
    elif kind in ("t5", "mt5", "umt5"):
        prefix = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}[kind]
        loader, family = getattr(transformers, f"{prefix}EncoderModel"), MaskedTextEncoder
    else:
        raise ModelError(
            f"--text-encoder {spec.model}: a model of type {kind!r} is neither CLIP nor T5; write auto:{spec.model} "
            "to take its hidden states all the same"
        )
    try:
        model = loader.from_pretrained(location.name, dtype=torch_dtype, **location.arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"--text-encoder {spec.model}: cannot load it: {in_a_line(error)}") from error
    folder = location.subfolder.replace("text_encoder", "tokenizer")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            location.name, subfolder=folder, revision=location.revision or "main"
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"--text-encoder {spec.model}: no tokenizer that can be loaded in {folder or 'the same folder'} "
            f"({in_a_line(error)}). Name the folder that has the model and the tokenizer, or one with text_encoder/ and "
            "tokenizer/ in it"
        ) from error
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "get_encoder"):
        model = model.get_encoder()  # the other half writes text
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return family(spec, model, tokenizer, location.recipe(model), device, torch_dtype)
