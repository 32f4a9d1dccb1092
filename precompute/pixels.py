"""Image bytes -> uint8 pixels at each resolution; one decode serves all.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still no smaller than the largest resolution: its DCT
does the first part of the shrinking, several times faster than decoding every pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from builders.images import MAX_PIXELS, UndecodableImage, decode_rgb, probe

UInt8 = npt.NDArray[np.uint8]


class UnfitImage(ValueError):
    """An image that becomes no sample; `reason` goes into the ledger."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """pixels: resolution -> (R, R, 3) uint8. width, height, crop: in pixels of the source as a viewer sees it;
    crop is (left, top, right, bottom)."""

    pixels: dict[int, UInt8]
    width: int
    height: int
    crop: tuple[int, int, int, int]


def read_picture(data: bytes, resolutions: Sequence[int]) -> Picture:
    """Decode, crop the central square, shrink or enlarge it to each resolution (antialiased bicubic).

    Raises UnfitImage where the bytes are no readable image (`undecodable`) or a decompression bomb (`too_large`).
    """
    try:
        _, width, height = probe(data)
        if width * height > MAX_PIXELS:
            raise UnfitImage("too_large")
        image = decode_rgb(data, shorter_edge=max(resolutions))
    except UndecodableImage as error:
        raise UnfitImage("undecodable") from error
    edge = min(width, height)
    left, top = (width - edge) // 2, (height - edge) // 2
    return Picture(
        pixels={resolution: fit(image, resolution) for resolution in resolutions},
        width=width,
        height=height,
        crop=(left, top, left + edge, top + edge),
    )


def fit(image: Image.Image, resolution: int) -> UInt8:
    """The central square of an RGB image, resized to (resolution, resolution, 3) uint8."""
    edge = min(image.size)
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC, box=box))


RECIPE: dict[str, Any] = {"crop": "center", "resize": "bicubic", "version": 1}
