"""What is stored of an image's posterior: its moments, raw, or latents that are scaled and ready."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from loader.format import Field, image_field_name
from precompute.encode.devices import to_device
from precompute.encode.image import ImageEncoder
from precompute.encode.stored import STORES, Store


@dataclass(frozen=True)
class View:
    """One image field: the picture at a resolution (pixels), as it is or mirrored."""

    name: str
    resolution: int
    flipped: bool


class StoredLatents:
    """The one place where it is decided what becomes of an encoder's mean and std.

    posterior: `moments` (raw mean and std), `sample` (scaled, noise from the sample's key and `seed`) or `mode` (scaled
    mean). A model without a posterior is stored as `mode`.
    """

    def __init__(self, encoder: ImageEncoder, posterior: str, seed: int, store: Store = "float16") -> None:
        self.posterior = posterior if encoder.has_posterior else "mode"
        self._encoder, self._seed, self._store = encoder, seed, store
        self._shift, self._scale = (
            torch.as_tensor(v, dtype=torch.float32, device=encoder.device).view(-1, 1, 1)
            for v in (encoder.shift, encoder.scale)
        )

    def views(self, resolutions: Sequence[int], flip: bool) -> list[View]:
        """The pictures to encode, those of every resolution before the mirrored ones."""
        kind: Literal["moments", "latents"] = "moments" if self.posterior == "moments" else "latents"
        return [
            View(image_field_name(kind, resolution, flipped), resolution, flipped)
            for flipped in ([False, True] if flip else [False])
            for resolution in resolutions
        ]

    def field(self, view: View, fixed_size: bool) -> Field:
        """fixed_size: all pictures are squares of their resolution."""
        encoder = self._encoder
        cells = view.resolution // encoder.factor if fixed_size else None
        if self.posterior == "moments":
            shape = (2 * encoder.channels, cells, cells)
            return Field(view.name, "moments", self._store, shape, encoder.scale, encoder.shift)
        return Field(view.name, "latents", self._store, (encoder.channels, cells, cells))

    def of(
        self, mean: torch.Tensor, std: torch.Tensor | None, keys: Sequence[str], view: View
    ) -> torch.Tensor:
        """What is stored of a batch. mean, std: raw, float32 (B, C, h, w)."""
        if self.posterior == "moments" and std is not None:
            return torch.cat([mean, std], dim=1).to(STORES[self._store])
        raw = mean
        if self.posterior == "sample" and std is not None:
            shape = tuple(mean.shape[1:])
            noise = np.stack([posterior_noise(self._seed, key, view.name, shape) for key in keys])
            raw = mean + std * to_device(torch.from_numpy(noise), mean.device)
        return ((raw - self._shift) * self._scale).to(STORES[self._store])


def posterior_noise(seed: int, key: str, view: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal noise that depends on the sample's key and field, not on when or where it is drawn."""
    digest = hashlib.sha256(f"{seed}/{key}/{view}".encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)
