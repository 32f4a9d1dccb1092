"""What is stored of a text model's output: hidden states by layer, the rows that count, a pooled vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loader.format import Field
from precompute.encode.caption_tokens import Tokens
from precompute.encode.devices import to_device
from precompute.encode.stored import Array, as_array
from precompute.encode.text_models import final_norm
from precompute.encode.text_spec import TextSpec


@dataclass(frozen=True)
class Launched:
    """Results on their way from the device: states (B, T, D) and pooled (B, P), of the dtype that is stored, None where they are
    not stored; lengths in tokens; finite (B,), bool: whether all that is stored of a caption is."""

    states: torch.Tensor | None
    pooled: torch.Tensor | None
    finite: torch.Tensor
    lengths: list[int]

    @property
    def nbytes(self) -> int:
        """Bytes as pinned memory is given out, in powers of two."""
        tensors = [tensor for tensor in (self.states, self.pooled) if tensor is not None]
        return sum(1 << (tensor.nbytes - 1).bit_length() for tensor in tensors)

    def arrays(self, row: int, fields: Sequence[Field]) -> dict[str, Array]:
        """One caption's arrays by field name. Only once the device is done."""
        found = {}
        if self.states is not None:
            found["caption_latents"] = as_array(self.states[row, : self.lengths[row]])
        if self.pooled is not None:
            found["caption_pooled"] = as_array(self.pooled[row])
        return {field.name: found[field.kind] for field in fields}


def hidden(spec: TextSpec, output: Any, model: Any) -> torch.Tensor:
    """(B, T, D): the states of the layers that are asked for, joined along the channels."""
    norm = final_norm(model, spec.model) if spec.norm else lambda states: states
    layers: list[torch.Tensor] = [
        output.last_hidden_state if layer == -1 else norm(output.hidden_states[layer])
        for layer in spec.layers
    ]
    return layers[0] if len(layers) == 1 else torch.cat(layers, dim=-1)


def kept(spec: TextSpec, states: torch.Tensor, tokens: Tokens, skip: int) -> torch.Tensor:
    """The states from the first that is stored; where their number varies, padding on the left goes behind the others."""
    if spec.keep == "first" and skip:
        return torch.cat([states[:, :1], states[:, 1 + skip :]], dim=1)
    most = states.shape[1]
    if spec.side == "left" and tokens.varies:
        rows = (torch.arange(most) + most - tokens.lengths[:, None]) % most
        return states.gather(1, to_device(rows, states.device)[..., None].expand(states.shape))
    return states[:, skip:]


def pooled_of(spec: TextSpec, output: Any) -> torch.Tensor | None:
    """(B, P), where it is asked for and there is one."""
    if not spec.pooled:
        return None
    pooled: torch.Tensor | None = getattr(output, "text_embeds", None)
    return getattr(output, "pooler_output", None) if pooled is None else pooled
