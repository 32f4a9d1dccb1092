"""Text encoders: captions -> hidden states, one way of running any of them.

What `--text-encoder` may say stands in precompute/encode/text_spec.py. The first encoder writes `caption_latents`, one called NAME
`caption_latents_NAME`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch

from loader.format import Field, text_field_name
from precompute.encode.caption_tokens import CaptionTokens
from precompute.encode.devices import to_device
from precompute.encode.image import DTYPES, Load
from precompute.encode.installed import installed
from precompute.encode.models import in_a_line, locate_model, tokenizer_hash, weights_hash
from precompute.encode.openclip import open_openclip
from precompute.encode.stored import STORES, Array, Store
from precompute.encode.text_models import load_text_model, open_tokenizer, text_family
from precompute.encode.text_spec import PADDINGS, Padding, TextSpec, parse_text_encoder
from precompute.encode.text_states import Launched, hidden, kept, pooled_of
from precompute.encode.toy import ToyTokenizer, toy_text_model
from precompute.errors import ModelError, UsageError

LONGEST = 512  # tokens, where neither the model nor the user says less


class TextEncoder:
    """A model of any family, with one way of padding.

    `full`: every caption is padded to the full length, and the model sees no mask, as CLIP models were trained. `trim`: the
    real tokens alone are kept; what a token's state is does not depend on masked padding behind it, so that this loses
    nothing, and the loader makes the mask from the length. `masked`: masked, but the padding's states are kept too.

    length: T, tokens that are stored of a caption at most. dim: D of a hidden state.
    fields: what it writes; T is None in their shape where only the real tokens are kept.
    model: in `dtype` already, but for what its library keeps in float32, as T5's `wo`. load: the same model in another
    precision; by default a cast copy. store: dtype of what it gives.
    """

    def __init__(
        self,
        spec: TextSpec,
        model: Any,
        tokenizer: Any,
        recipe: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        padding: Padding = "full",
        load: Load | None = None,
        store: Store = "float16",
    ) -> None:
        self.spec, self.device, self.dtype, self.store = spec, device, dtype, store
        self.padding: Padding = spec.padding or padding
        self._load: Load = load or (lambda dtype: copy.deepcopy(self._models[self.dtype]).to(dtype))
        self._models = {dtype: self._place(model)}
        self._tokens = CaptionTokens(spec, tokenizer, self.padding)
        self.length = self._length(model.config, tokenizer)
        try:
            probe = self.launch([""])
        except IndexError as error:
            layers = getattr(model.config, "num_hidden_layers", "fewer")
            raise UsageError(
                f"--text-encoder {spec.model}: no layer {','.join(map(str, spec.layers))}; it has {layers}"
            ) from error
        except (AttributeError, TypeError, ValueError) as error:
            raise ModelError(
                f"--text-encoder {spec.model}: it gives no hidden states for text alone ({in_a_line(error)}); name a text model"
            ) from error
        if spec.pooled and probe.pooled is None:
            raise ModelError(f"--text-encoder {spec.model}: it has no pooled output; leave out pooled")
        if (probe.lengths[0] < 1 and not spec.quoted) or self._tokens.skip < 0:
            raise UsageError(
                f"--text-encoder {spec.model}: skip={self._tokens.skip} leaves nothing of an empty caption"
            )
        self.fields = []
        if probe.states is not None:
            shape = (None if self._tokens.varies else self.length, probe.states.shape[-1])
            self.fields.append(Field(text_field_name("latents", spec.name), "caption_latents", store, shape))
        if probe.pooled is not None:
            name, dim = text_field_name("pooled", spec.name), probe.pooled.shape[-1]
            self.fields.append(Field(name, "caption_pooled", store, (dim,)))
        self.recipe = {
            **recipe,
            "name": spec.name,
            "dtype": str(dtype).removeprefix("torch."),
            "layer": spec.layers[0] if len(spec.layers) == 1 else list(spec.layers),
            "length": self.length,
            "padding": PADDINGS[self.padding],
            "pooled": spec.pooled if spec.states else "only",
            **({"template": spec.template} if spec.template != "{}" else {}),
            **({"skip": self._tokens.skip} if self._tokens.skip else {}),
            **spec.extras,
        }

    def encode(self, captions: Sequence[str], dtype: torch.dtype | None = None) -> list[dict[str, Array]]:
        """Arrays by field name for each caption: hidden states (T, D), and (P,) where `pooled` is asked for.

        Captions of more than `length` tokens are cut. dtype: compute in this one rather than in the encoder's own.
        """
        groups = self.groups(captions)
        launched = [self.launch(group, dtype) for group in groups]
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        found = {
            caption: batch.arrays(row, self.fields)
            for group, batch in zip(groups, launched, strict=True)
            for row, caption in enumerate(group)
        }
        return [found[caption] for caption in captions]

    def groups(self, captions: Sequence[str]) -> list[list[str]]:
        """The captions, apart where they cannot be of one batch: those that are read without template and those with it."""
        bare = [caption for caption in captions if self.spec.is_bare(caption)]
        return [group for group in ([c for c in captions if c not in bare], bare) if group]

    @torch.inference_mode()
    def launch(self, captions: Sequence[str], dtype: torch.dtype | None = None) -> Launched:
        """Start `encode` on the device without waiting for it. captions: one of `groups`."""
        dtype, spec = dtype or self.dtype, self.spec
        if dtype not in self._models:
            self._models[dtype] = self._place(self._load(dtype))
        skip = 0 if spec.is_bare(captions[0]) else self._tokens.skip
        tokens = self._tokens.of([spec.fill(caption) for caption in captions], self.length + skip, skip)
        if spec.quoted:
            tokens.lengths[[not spec.read(caption) for caption in captions]] = 0
        output = self._models[dtype](
            input_ids=to_device(tokens.ids, self.device),
            attention_mask=None if tokens.seen is None else to_device(tokens.seen, self.device),
            output_hidden_states=spec.layers != (-1,),
        )
        states, pooled = None, pooled_of(spec, output)
        finite = torch.ones(len(captions), dtype=torch.bool, device=self.device)
        if spec.states:
            states = kept(spec, hidden(spec, output, self._models[dtype]), tokens, skip).to(
                STORES[self.store]
            )
            # Counted on the host, so that nothing waits for the device.
            padding = to_device(torch.arange(states.shape[1]) >= tokens.lengths[:, None], self.device)
            finite &= (torch.isfinite(states).all(-1) | padding).all(1)
        if pooled is not None:
            pooled = pooled.to(STORES[self.store])
            finite &= torch.isfinite(pooled).all(-1)
        return Launched(
            states=None if states is None else states.to("cpu", non_blocking=True),
            pooled=None if pooled is None else pooled.to("cpu", non_blocking=True),
            finite=finite.to("cpu", non_blocking=True),
            lengths=tokens.lengths.tolist(),
        )

    def forget(self, dtype: torch.dtype) -> None:
        """Free what computing in a precision that is not the encoder's own has taken."""
        if dtype != self.dtype:
            self._models.pop(dtype, None)

    def _place(self, model: Any) -> Any:
        return model.to(self.device).eval().requires_grad_(False)

    def _length(self, config: Any, tokenizer: Any) -> int:
        asked, skip = self.spec.length, self._tokens.skip
        most = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        if asked and asked + skip > most:
            raise UsageError(
                f"--text-encoder {self.spec.model}: length {asked} is more than the model's {most} tokens"
            )
        return asked or min(most - skip, int(tokenizer.model_max_length) - skip, LONGEST)


def open_text_encoder(
    value: str, device: torch.device | str = "cpu", dtype: str = "float32", store: Store = "float16"
) -> TextEncoder:
    """The encoder that one `--text-encoder` names: `toy`, a folder, or a Hub id; `text_encoder` and `tokenizer`
    subfolders, as diffusers pipelines have them, are found by themselves.

    CLIP and T5 families go by their name; `auto:ID` takes any other transformers model that gives hidden states;
    `openclip:NAME` one of OpenCLIP (precompute/encode/openclip.py); NAME:ID one of an installed package.
    Raises ModelError or UsageError.
    """
    spec, device, torch_dtype = parse_text_encoder(value), torch.device(device), DTYPES[dtype]
    model: Any
    tokenizer: Any
    theirs = installed("text", spec.model)
    if spec.model != "toy" and not spec.model.startswith("openclip:") and theirs is None:
        return _open_transformers(spec, device, torch_dtype, store)
    if spec.model == "toy":
        model, tokenizer = toy_text_model(), ToyTokenizer()
    elif theirs is not None:
        open_theirs, rest = theirs
        model, tokenizer = open_theirs(rest)
    else:
        model, tokenizer = open_openclip(spec.model)
    recipe = {"model": spec.model, "weights": weights_hash(model)}
    return TextEncoder(spec, model.to(torch_dtype), tokenizer, recipe, device, torch_dtype, store=store)


def _open_transformers(spec: TextSpec, device: torch.device, dtype: torch.dtype, store: Store) -> TextEncoder:
    auto = spec.model.startswith("auto:")
    location = locate_model(
        "--text-encoder", spec.model.removeprefix("auto:"), [spec.subfolder or "text_encoder"]
    )
    family, padding = text_family(spec, location, auto)
    model, variant = load_text_model(spec, location, family, dtype)
    tokenizer = open_tokenizer(spec, location)

    def load(dtype: torch.dtype) -> Any:
        return load_text_model(spec, location, family, dtype)[0]

    recipe = {
        **location.recipe(model),
        "tokenizer": tokenizer_hash(tokenizer),
        **({"auto": True} if auto else {}),
        **({"variant": variant} if variant else {}),
    }
    return TextEncoder(spec, model, tokenizer, recipe, device, dtype, padding, load, store)
