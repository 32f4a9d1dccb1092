"""A sample as a person sees it: its source, what its latents decode to, and its caption."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loader.format import Manifest
from loader.printable import one_line
from precompute.encode.image import ImageEncoder
from precompute.shards.sample_reader import Sample, raw_latents
from precompute.verification.decode_check import decode, psnr
from precompute.verification.source_check import source_pixels

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """One image of a card. decibels: PSNR against the source at that resolution, None for the source itself."""

    label: str
    pixels: UInt8
    decibels: float | None = None


@dataclass(frozen=True)
class Card:
    """A sample as a person sees it: its source, where at hand, and what its latents decode to."""

    key: str
    caption: str
    pictures: list[Tile]


def make_cards(
    samples: Sequence[Sample], images: dict[str, bytes], manifest: Manifest, encoder: ImageEncoder | None
) -> list[Card]:
    """One card for each sample."""
    fields = [field for field in manifest.fields if field.kind in ("moments", "latents")]
    cards = []
    for sample in samples:
        pictures = []
        for field in fields:
            raw = raw_latents(field, sample.arrays[field.name], manifest.recipe)
            pixels = decode(raw, encoder) if encoder else _false_colours(raw)
            source = source_pixels(
                images.get(sample.key), sample.facts, pixels.shape[0], pixels.shape[1], manifest.recipe
            )
            if source is not None and field.name.endswith("_flipped"):
                source = source[:, ::-1]
            pictures.append(
                Tile(_label(field.name), pixels, None if source is None else psnr(pixels, source))
            )
        height, width = max((p.pixels.shape[:2] for p in pictures), default=(256, 256))
        shown = source_pixels(images.get(sample.key), sample.facts, height, width, manifest.recipe)
        source_picture = [] if shown is None else [Tile("source", shown)]
        cards.append(Card(sample.key, one_line(sample.caption), source_picture + pictures))
    return cards


def make_pair(samples: tuple[Sample, Sample], manifest: Manifest, encoder: ImageEncoder | None) -> Card:
    """Two samples side by side, decoded from whichever image field both carry."""
    fields = [field for field in manifest.fields if field.name in samples[0].arrays]
    raws = [raw_latents(fields[0], sample.arrays[fields[0].name], manifest.recipe) for sample in samples]
    pictures = [
        Tile(sample.key, decode(raw, encoder) if encoder else _false_colours(raw))
        for sample, raw in zip(samples, raws, strict=True)
    ]
    return Card("", "", pictures)


def _label(field: str) -> str:
    return field.partition("_")[2].replace("_", " ")


def _false_colours(raw: npt.NDArray[np.float32]) -> UInt8:
    """Latents themselves, where there is no VAE to decode them with: three channels as red, green and blue."""
    channels = np.stack([raw[i % len(raw)] for i in range(3)], axis=-1)
    low, high = channels.min((0, 1)), channels.max((0, 1))
    scaled = (channels - low) / np.maximum(high - low, 1e-6) * 255
    return scaled.astype(np.uint8).repeat(8, 0).repeat(8, 1)
