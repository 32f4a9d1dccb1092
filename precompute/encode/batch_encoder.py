"""One batch on the device: uint8 pixels and captions in, the arrays to store out.

`launch` starts the work and returns at once; `collect` waits for it. Between the two the next batch is launched, so that
the device never waits for the host. Keeps to raw latents: what is stored, and how, is decided in `_store` alone.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from precompute.encode.caption_encoder import Arrays, CaptionEncoder, Found
from precompute.encode.devices import DeviceClock, Span, to_device
from precompute.encode.image import ImageEncoder
from precompute.encode.latents import Size, StoredImages, StoredLatents, View
from precompute.encode.microbatch import Microbatches, free_memory, out_of_memory
from precompute.encode.stored import Store, as_array
from precompute.encode.text import TextEncoder

logger = logging.getLogger("precompute")

WIDER = {torch.float16: (torch.bfloat16, torch.float32), torch.bfloat16: (torch.float32,), torch.float32: ()}

Result = TypeVar("Result")


@dataclass(frozen=True)
class EncoderInput:
    """What the device needs of one row. pixels: resolution -> (H, W, 3) uint8, of one shape within a batch."""

    key: str
    captions: Sequence[str]
    pixels: dict[Size, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Encoded:
    """What is stored of one row. arrays: by field name. tokens: of each caption, by the name of the field of its states, or of its
    pooled output where that is all."""

    arrays: Arrays
    tokens: dict[str, list[int]]


@dataclass(frozen=True)
class InFlight:
    """A launched batch. images: per view what to store, and which samples are finite; captions: per text encoder and
    caption, where its states are."""

    samples: Sequence[EncoderInput]
    images: list[tuple[torch.Tensor, torch.Tensor]]
    captions: list[Found]
    span: Span


class BatchEncoder:
    """posterior: as StoredLatents has it. flip: store the mirrored picture too. fixed_size: all pictures are squares of their
    resolution. fill_to: images that every call of the image encoder is filled up to, for one that is compiled, which takes a
    minute for each new number. max_captions: of a sample; where more than one, those there are lie end to end. store: dtype of
    what is stored; text encoders have their own. kind: of the captions, where they are added to shards that have others.

    fields: the members that every sample gets, in order. clock: how long the device has been busy. reads_images: whether
    it needs the pixels of a sample, or its captions alone.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder | None,
        text_encoders: Sequence[TextEncoder],
        resolutions: Sequence[int],
        posterior: str,
        seed: int,
        flip: bool = False,
        fixed_size: bool = True,
        fill_to: int | None = None,
        max_captions: int = 1,
        store: Store = "float16",
        features: Sequence[StoredImages] = (),
        kind: str = "",
    ) -> None:
        stored: list[StoredImages] = [*features]
        if image_encoder:
            stored.insert(0, StoredLatents(image_encoder, posterior, seed, resolutions, store))
        self.max_captions, self.kind = max_captions, kind
        self._told: list[TextEncoder] = []  # whose states were too large
        self._device = (stored[0] if stored else text_encoders[0]).device
        self.clock = DeviceClock(self._device)
        cure = "use a smaller resolution, or --dtype bfloat16"
        self._image_parts = {one: Microbatches(f"{one.flag}: one image", cure, fill_to) for one in stored}
        self._captions = [CaptionEncoder(encoder, max_captions, kind) for encoder in text_encoders]
        self._views = [view for one in stored for view in one.views(flip)]
        self.reads_images = bool(self._views)
        self.fields = [view.stored.field(view, fixed_size) for view in self._views]
        self.fields += [field for encoder in self._captions for field in encoder.fields]

    def start_unit(self) -> None:
        """Forget the captions seen: a unit's values may depend on nothing outside it."""
        for encoder in self._captions:
            encoder.start_unit()

    def launch(self, samples: Sequence[EncoderInput]) -> InFlight:
        """Start the work. Where the device's memory is too small, it goes on in halves, from here on.

        Captions go first, and beside the images: a text model may look at its mask, and with it wait for what is before it.
        """
        span = self.clock.start()
        texts = [caption for sample in samples for caption in sample.captions]
        with self.clock.beside():
            captions = [encoder.launch(texts, len(samples)) for encoder in self._captions]
        pixels = {r: self._to_device(samples, r) for r in dict.fromkeys(v.size for v in self._views)}
        span.begin()
        images = [self._launch_images(samples, pixels[view.size], view) for view in self._views]
        span.end()
        return InFlight(samples, images, captions, span)

    def collect(self, batch: InFlight) -> list[Encoded | None]:
        """What to store of each sample; None where a value is not finite in any precision."""
        batch.span.wait()
        results: list[Encoded | None] = []
        first = 0
        for index, sample in enumerate(batch.samples):
            arrays: Arrays = {}
            tokens: dict[str, list[int]] = {}
            for view, (kept, finite) in zip(self._views, batch.images, strict=True):
                good = kept[index] if finite[index] else self._retry_image(sample, view)
                if good is not None:
                    arrays[view.name] = as_array(good)
            last = first + len(sample.captions)
            for encoder, found in zip(self._captions, batch.captions, strict=True):
                stored, lengths = encoder.collect(sample.captions, found[first:last], self._retry_caption)
                arrays |= stored
                tokens |= lengths
            first = last
            results.append(Encoded(arrays, tokens) if len(arrays) == len(self.fields) else None)
        return results

    def _to_device(self, samples: Sequence[EncoderInput], size: Size) -> torch.Tensor:
        """(B, 3, H, W) uint8, by way of pinned memory and without waiting."""
        shape = (len(samples), *samples[0].pixels[size].shape)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        for row, sample in zip(pixels.numpy(), samples, strict=True):
            row[:] = sample.pixels[size]
        return to_device(pixels, self._device).permute(0, 3, 1, 2)

    def _launch_images(
        self, samples: Sequence[EncoderInput], pixels: torch.Tensor, view: View
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = [sample.key for sample in samples]
        work = self._image_parts[view.stored]
        parts = work.run(len(keys), lambda part: self._encode(pixels[part], keys[part], view, work.fill_to))
        stored = torch.cat(parts) if len(parts) > 1 else parts[0]
        finite = torch.isfinite(stored).flatten(1).all(1)
        return stored.to("cpu", non_blocking=True), finite.to("cpu", non_blocking=True)

    def _encode(
        self, pixels: torch.Tensor, keys: Sequence[str], view: View, fill_to: int | None
    ) -> torch.Tensor:
        pixels = pixels.flip(-1) if view.flipped else pixels
        return view.stored.encode(filled(pixels, fill_to) if fill_to else pixels, keys, view)

    def _retry_image(self, sample: EncoderInput, view: View) -> torch.Tensor | None:
        """One sample alone, in wider and wider precision."""
        pixels = torch.from_numpy(sample.pixels[view.size].copy()).to(self._device).permute(2, 0, 1)[None]

        def encode(dtype: torch.dtype) -> torch.Tensor:
            turned = pixels.flip(-1) if view.flipped else pixels
            return view.stored.encode(turned, [sample.key], view, dtype)[0].cpu()

        for dtype in WIDER[view.stored.dtype]:
            stored = self._alone(partial(encode, dtype), view.stored, dtype)
            if stored is not None and torch.isfinite(stored).all():
                return stored
        return None

    def _retry_caption(self, caption: str, encoder: TextEncoder) -> Arrays:
        for dtype in WIDER[encoder.dtype]:
            launched = self._alone(partial(encoder.launch, [caption], dtype), encoder, dtype)
            if launched is not None and launched.finite[0]:
                return launched.arrays(0, encoder.fields)
        if encoder.store == "float16" and encoder not in self._told:
            self._told.append(encoder)
            logger.warning(
                "--text-encoder %s: states of a caption do not fit into float16, and its row is rejected as non_finite; "
                "--store bfloat16 would keep it",
                encoder.spec.model,
            )
        return {}

    def _alone(
        self, work: Callable[[], Result], encoder: StoredImages | TextEncoder, dtype: torch.dtype
    ) -> Result | None:
        """None where the device has no memory for a second copy of the model: it costs the row, and not the run."""
        span = self.clock.start()
        try:
            return work()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        finally:
            span.end()
            span.wait()
        encoder.forget(dtype)
        free_memory()
        logger.warning("--dtype: no memory to compute a row again in %s; it is rejected as non_finite", dtype)
        return None


def filled(pixels: torch.Tensor, count: int) -> torch.Tensor:
    """(B, 3, H, W) to (count, 3, H, W), the last image over and over, always of the same strides."""
    rows = torch.arange(count, device=pixels.device).clamp(max=len(pixels) - 1)
    return pixels[rows].contiguous(memory_format=torch.channels_last)
