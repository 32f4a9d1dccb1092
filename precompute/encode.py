"""One batch on the device: uint8 pixels and captions in, the arrays to store out.

`launch` starts the work and returns at once; `collect` waits for it. Between the two the next batch is launched, so that
the device never waits for the host. Keeps to raw latents: what is stored, and how, is decided in `_store` alone.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from loader.format import Field, image_field_name
from precompute.encoders import ImageEncoder
from precompute.errors import PrecomputeError
from precompute.text_encoders import Launched, TextEncoder

CACHED_CAPTIONS = 1024  # recent captions of a unit whose embeddings are kept for the rows that repeat them
FALLBACKS = (
    torch.bfloat16,
    torch.float32,
)  # where a value is not finite: wider exponent, then more of everything

Arrays = dict[str, npt.NDArray[np.float16]]


@dataclass(frozen=True)
class Sample:
    """What the device needs of one row. pixels: resolution -> (R, R, 3) uint8."""

    key: str
    caption: str
    pixels: dict[int, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class InFlight:
    """A launched batch: per resolution what to store and which samples are finite; per text encoder and sample, where
    its caption's states are."""

    samples: Sequence[Sample]
    images: dict[int, tuple[torch.Tensor, torch.Tensor]]
    captions: list[list[tuple[Launched, int]]]
    done: torch.cuda.Event | None


class BatchEncoder:
    """posterior: `moments` (raw mean and std), `sample` (scaled, noise from the sample's key and `seed`) or `mode`
    (scaled mean). A model without a posterior is stored as `mode`.

    fields: the members that every sample gets, in order.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoders: Sequence[TextEncoder],
        resolutions: Sequence[int],
        posterior: str,
        seed: int,
    ) -> None:
        self.posterior = posterior if image_encoder.has_posterior else "mode"
        self._image_encoder, self._text_encoders = image_encoder, text_encoders
        self._resolutions, self._seed = resolutions, seed
        self._device = image_encoder.device
        self._micro_batch: int | None = None
        self._recent: list[OrderedDict[str, tuple[Launched, int]]] = []
        self.start_unit()
        self.fields = [self._image_field(r) for r in resolutions] + [
            f for t in text_encoders for f in t.fields
        ]

    def start_unit(self) -> None:
        """Forget the captions seen: a unit's values may depend on nothing outside it."""
        self._recent = [OrderedDict() for _ in self._text_encoders]

    def launch(self, samples: Sequence[Sample]) -> InFlight:
        """Start the work. Out of device memory, it goes on in halves, from here on."""
        images = {r: self._launch_images(samples, r) for r in self._resolutions}
        captions = [
            self._launch_captions(i, [s.caption for s in samples]) for i in range(len(self._text_encoders))
        ]
        done = None
        if self._device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return InFlight(samples, images, captions, done)

    def collect(self, batch: InFlight) -> list[Arrays | None]:
        """Arrays by field name for each sample; None where a value is not finite in any precision."""
        if batch.done is not None:
            batch.done.synchronize()
        elif self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        results: list[Arrays | None] = []
        for index, sample in enumerate(batch.samples):
            arrays: Arrays = {}
            for resolution, (stored, finite) in batch.images.items():
                good = stored[index] if finite[index] else self._retry(sample, resolution)
                if good is not None:
                    arrays[self._name(resolution)] = good.numpy()
            for encoder, found in zip(self._text_encoders, batch.captions, strict=True):
                launched, row = found[index]
                arrays.update(launched.arrays(row, encoder.fields))
            whole = len(arrays) == len(self.fields) and all(np.isfinite(a).all() for a in arrays.values())
            results.append(arrays if whole else None)
        return results

    def _name(self, resolution: int) -> str:
        return image_field_name("moments" if self.posterior == "moments" else "latents", resolution)

    def _image_field(self, resolution: int) -> Field:
        encoder, cells = self._image_encoder, resolution // self._image_encoder.factor
        if self.posterior == "moments":
            shape = (2 * encoder.channels, cells, cells)
            return Field(self._name(resolution), "moments", "float16", shape, encoder.scale, encoder.shift)
        return Field(self._name(resolution), "latents", "float16", (encoder.channels, cells, cells))

    def _launch_images(self, samples: Sequence[Sample], resolution: int) -> tuple[torch.Tensor, torch.Tensor]:
        pinned = self._device.type == "cuda"
        pixels = torch.empty((len(samples), resolution, resolution, 3), dtype=torch.uint8, pin_memory=pinned)
        for row, sample in zip(pixels.numpy(), samples, strict=True):
            row[:] = sample.pixels[resolution]
        on_device = pixels.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        keys = [sample.key for sample in samples]
        parts, start = [], 0
        while start < len(samples):
            stop = start + (self._micro_batch or len(samples))
            try:
                parts.append(self._encode(on_device[start:stop], keys[start:stop], resolution))
            except torch.OutOfMemoryError as error:
                self._halve(min(stop, len(samples)) - start, error)
                continue
            start = stop
        stored = torch.cat(parts) if len(parts) > 1 else parts[0]
        finite = torch.isfinite(stored).flatten(1).all(1)
        return stored.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True)

    def _halve(self, size: int, error: Exception) -> None:
        if size == 1:
            raise PrecomputeError(
                f"--resolutions {max(self._resolutions)}: one image does not fit in the device's memory; "
                "use a smaller resolution, or --dtype bfloat16"
            ) from error
        self._micro_batch = size // 2
        torch.accelerator.empty_cache()

    def _encode(
        self, pixels: torch.Tensor, keys: Sequence[str], resolution: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        mean, std = self._image_encoder.encode(pixels, dtype)
        return self._store(mean, std, keys, resolution)

    def _store(
        self, mean: torch.Tensor, std: torch.Tensor | None, keys: Sequence[str], resolution: int
    ) -> torch.Tensor:
        if self.posterior == "moments" and std is not None:
            return torch.cat([mean, std], dim=1).to(torch.float16)
        raw = mean
        if self.posterior == "sample" and std is not None:
            noise = np.stack(
                [posterior_noise(self._seed, key, resolution, tuple(mean.shape[1:])) for key in keys]
            )
            raw = mean + std * torch.from_numpy(noise).to(mean.device)
        shift, scale = (torch.as_tensor(v, dtype=torch.float32, device=raw.device) for v in self._affine())
        return ((raw - shift.view(-1, 1, 1)) * scale.view(-1, 1, 1)).to(torch.float16)

    def _affine(self) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
        return self._image_encoder.shift, self._image_encoder.scale

    def _retry(self, sample: Sample, resolution: int) -> torch.Tensor | None:
        """One sample alone, in wider and wider precision."""
        pixels = torch.from_numpy(sample.pixels[resolution].copy()).to(self._device).permute(2, 0, 1)[None]
        for dtype in FALLBACKS:
            if dtype != self._image_encoder.dtype:
                stored = self._encode(pixels, [sample.key], resolution, dtype)
                if torch.isfinite(stored).all():
                    return stored[0].cpu()
        return None

    def _launch_captions(self, index: int, captions: Sequence[str]) -> list[tuple[Launched, int]]:
        recent = self._recent[index]
        new = [caption for caption in dict.fromkeys(captions) if caption not in recent]
        if new:
            launched = self._text_encoders[index].launch(new)
            recent.update({caption: (launched, row) for row, caption in enumerate(new)})
        found = [recent[caption] for caption in captions]
        while len(recent) > CACHED_CAPTIONS:
            recent.popitem(last=False)
        return found


def posterior_noise(seed: int, key: str, resolution: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal noise that depends on the sample's key, not on when or where it is drawn."""
    digest = hashlib.sha256(f"{seed}/{key}/{resolution}".encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)
