"""What is stored of an image's posterior: its moments, raw, or latents that are scaled and ready."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from loader.format import Field, image_field_name
from precompute.encode.devices import to_device
from precompute.encode.image import ImageEncoder
from precompute.encode.stored import STORES, Store

Size = int | str


class StoredImages(Protocol):
    """What one model makes of pictures. flag: what names it, for errors."""

    flag: str
    device: torch.device
    dtype: torch.dtype

    def views(self, flip: bool) -> "list[View]":
        """The pictures to encode, those of every size before the mirrored ones."""
        ...

    def field(self, view: "View", fixed_size: bool) -> Field:
        """What is written of a view. fixed_size: all pictures are squares of their resolution."""
        ...

    def encode(
        self, pixels: torch.Tensor, keys: Sequence[str], view: "View", dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Make what is stored, 16 bits a value, of uint8 (B, 3, H, W) on the device, of the first `len(keys)`. dtype: to compute in."""
        ...

    def forget(self, dtype: torch.dtype) -> None:
        """Free what computing in a precision that is not the model's own has taken."""
        ...


@dataclass(frozen=True)
class View:
    """One image field: the picture at a size, as it is or mirrored. size: a resolution in pixels, or the name of the features for
    which it is made. stored: what is made of it."""

    name: str
    size: Size
    flipped: bool
    stored: StoredImages


class StoredLatents:
    """The one place where it is decided what becomes of an encoder's mean and std.

    posterior: `moments` (raw mean and std), `sample` (scaled, noise from the sample's key and `seed`) or `mode` (scaled
    mean). A model without a posterior is stored as `mode`.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        posterior: str,
        seed: int,
        resolutions: Sequence[int],
        store: Store = "float16",
    ) -> None:
        self.flag, self.device = f"--resolutions {max(resolutions)}", encoder.device
        self.dtype, self._resolutions = encoder.dtype, resolutions
        self.posterior = posterior if encoder.has_posterior else "mode"
        self._encoder, self._seed, self._store = encoder, seed, store
        self._shift, self._scale = (
            torch.as_tensor(v, dtype=torch.float32, device=encoder.device).view(-1, 1, 1)
            for v in (encoder.shift, encoder.scale)
        )

    def views(self, flip: bool) -> list[View]:
        kind: Literal["moments", "latents"] = "moments" if self.posterior == "moments" else "latents"
        return [
            View(image_field_name(kind, resolution, flipped), resolution, flipped, self)
            for flipped in ([False, True] if flip else [False])
            for resolution in self._resolutions
        ]

    def field(self, view: View, fixed_size: bool) -> Field:
        encoder = self._encoder
        assert isinstance(view.size, int)
        cells = view.size // encoder.factor if fixed_size else None
        if self.posterior == "moments":
            shape = (2 * encoder.channels, cells, cells)
            return Field(view.name, "moments", self._store, shape, encoder.scale, encoder.shift)
        return Field(view.name, "latents", self._store, (encoder.channels, cells, cells))

    def encode(
        self, pixels: torch.Tensor, keys: Sequence[str], view: View, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        mean, std = self._encoder.encode(pixels, dtype)
        return self.of(mean[: len(keys)], None if std is None else std[: len(keys)], keys, view)

    def forget(self, dtype: torch.dtype) -> None:
        self._encoder.forget(dtype)

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
