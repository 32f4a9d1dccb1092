"""Text towers of OpenCLIP, behind the interface of a transformers CLIP text model: `--text-encoder openclip:NAME`.

    --text-encoder openclip:hf-hub:apple/DFN5B-CLIP-ViT-H-14-378        (77, 1024), the micro_diffusion paper's encoder

NAME is what `open_clip.create_model` takes: `hf-hub:ID`, `local-dir:FOLDER`, or `ARCHITECTURE/TAG` of a built-in one. The
tokenizer pads with id 0, no mask hides the padding, and the last states are those after the final layer norm.
"""

from types import SimpleNamespace
from typing import Any

import torch

from precompute.encode.models import in_a_line
from precompute.errors import ModelError

EXTRA = 'pip install "latentmill[openclip]"'


class OpenCLIPText(torch.nn.Module):
    """The text half of an OpenCLIP model; the image half is let go of."""

    attn_mask: torch.Tensor | None

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        text = getattr(model, "text", model)
        if not hasattr(text, "transformer") or not hasattr(text.transformer, "resblocks"):
            raise ModelError(
                f"--text-encoder {name}: its text tower is a transformers model; name that one as auto:ID"
            )
        if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
            raise ModelError(
                f"--text-encoder {name}: its text tower masks the padding, which is not supported"
            )
        self.token_embedding, self.ln_final = text.token_embedding, text.ln_final
        self.positional_embedding, self.text_projection = text.positional_embedding, text.text_projection
        self.transformer = text.transformer
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self._pool = getattr(text, "text_pool_type", None) or getattr(text, "pool_type", None)
        self.config = SimpleNamespace(max_position_embeddings=text.context_length)

    def forward(
        self, input_ids: torch.Tensor, output_hidden_states: bool = False, **_: None
    ) -> SimpleNamespace:
        """Hidden states (B, T, D) counted as transformers does: the embeddings, then each block's, unnormalised."""
        length = input_ids.shape[1]
        states = self.token_embedding(input_ids) + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        hidden = [states]
        for block in self.transformer.resblocks:
            hidden.append(self._run(block, hidden[-1], mask))
        last = self.ln_final(hidden[-1])
        return SimpleNamespace(
            last_hidden_state=last, hidden_states=hidden, text_embeds=self._pooled(last, input_ids)
        )

    def _run(self, block: Any, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.transformer.batch_first:
            return block(states, attn_mask=mask)
        return block(states.transpose(0, 1), attn_mask=mask).transpose(0, 1)

    def _pooled(self, last: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor | None:
        if self._pool != "argmax" or self.text_projection is None:  # the end token has the highest id
            return None
        pooled = last[torch.arange(len(last), device=last.device), input_ids.argmax(-1)]
        linear = isinstance(self.text_projection, torch.nn.Linear)
        return self.text_projection(pooled) if linear else pooled @ self.text_projection


class OpenCLIPTokenizer:
    """An OpenCLIP tokenizer, called as a transformers one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.model_max_length = tokenizer.context_length

    def __call__(self, captions: list[str], max_length: int, **_: object) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self._tokenizer(captions, context_length=max_length))


def open_openclip(name: str) -> tuple[OpenCLIPText, OpenCLIPTokenizer]:
    """The text tower and tokenizer of `openclip:NAME`. Raises ModelError."""
    try:
        import open_clip  # an extra: it brings torchvision and timm along
    except ImportError as error:
        raise ModelError(f"--text-encoder {name}: needs OpenCLIP: {EXTRA}") from error
    model_name = name.removeprefix("openclip:")
    pretrained = None
    if ":" not in model_name:
        model_name, _, pretrained = model_name.partition("/")
    try:
        model = open_clip.create_model(model_name, pretrained=pretrained or None, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(model_name)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"--text-encoder {name}: cannot load it: {in_a_line(error)}") from error
    return OpenCLIPText(model, name), OpenCLIPTokenizer(tokenizer)
