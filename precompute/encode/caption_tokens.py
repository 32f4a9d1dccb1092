"""Captions -> token ids: padding, its side, what the model may see of it, and how many rows are stored."""

from dataclasses import dataclass
from typing import Any

import torch

from precompute.encode.text_spec import Padding, TextSpec


@dataclass(frozen=True)
class Tokens:
    """ids (B, T) int64; seen (B, T): 1 where the model may look, None: everywhere; lengths (B,): rows stored of each; varies:
    whether their number differs between captions."""

    ids: torch.Tensor
    seen: torch.Tensor | None
    lengths: torch.Tensor
    varies: bool


class CaptionTokens:
    """A tokenizer, called as one `--text-encoder` asks.

    skip: tokens of the template that are not stored. varies: whether the number of rows stored differs between captions.
    """

    def __init__(self, spec: TextSpec, tokenizer: Any, padding: Padding) -> None:
        self._spec, self._tokenizer, self._padding = spec, tokenizer, padding
        self.skip = spec.skip + (self._before_caption() if spec.counted else 0)
        self.varies = padding == "trim" or spec.mask is not None or spec.multiple is not None

    def of(self, texts: list[str], most: int, skip: int) -> Tokens:
        """most: tokens at most, the first `skip` included, which are not stored."""
        options: dict[str, Any] = {"truncation": True, "max_length": most, "return_tensors": "pt"}
        if self._spec.multiple:
            options["pad_to_multiple_of"] = self._spec.multiple
        longest = self._padding == "trim" or self._spec.multiple
        padding, side = "longest" if longest else "max_length", self._spec.side
        tokens = self._tokenizer(texts, padding=padding, padding_side=side, **options)
        if not tokens.input_ids.shape[1]:
            least = self._spec.multiple or 1
            tokens = self._tokenizer(
                texts, padding="max_length", max_length=least, padding_side=side, return_tensors="pt"
            )
        ids = tokens.input_ids
        stored = torch.full((len(texts),), ids.shape[1] - skip)
        if self._padding == "full" and not self.varies:
            return Tokens(ids, None, stored, False)
        # A tokenizer that adds no special token makes nothing of an empty caption: it becomes one padding token.
        tokens.attention_mask[:, 0 if side == "right" else -1] = 1
        real = tokens.attention_mask.sum(1)
        if self._spec.multiple:
            whole = -(-real // self._spec.multiple) * self._spec.multiple
            places = torch.arange(ids.shape[1])
            places = places if side == "right" else places.flip(0)
            return Tokens(ids, (places < whole[:, None]).long(), whole, True)
        if self.varies:
            stored = (real - skip + (self._spec.mask == "one-more")).clamp(max=ids.shape[1] - skip)
        return Tokens(ids, None if self._padding == "full" else tokens.attention_mask, stored, self.varies)

    def _before_caption(self) -> int:
        """Tokens of the template ahead of the caption, a BOS included, but not one that is kept."""
        none = list(self._tokenizer("").input_ids)
        start = self._tokenizer.bos_token_id
        behind = len(none) - (start is not None and none[:1] == [start])
        before = len(self._tokenizer(self._spec.template.partition("{}")[0]).input_ids) - behind
        return before - (self._spec.keep == "first")
