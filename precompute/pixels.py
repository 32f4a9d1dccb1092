"""Image bytes -> uint8 pixels at each resolution; one decode serves all.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still no smaller than the largest resolution: its DCT
does the first part of the shrinking, several times faster than decoding every pixel.
"""

import functools
import math
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
    """pixels: resolution -> (H, W, 3) uint8, a square of that edge or a bucket of that area. width, height, crop: in
    pixels of the source as a viewer sees it; crop is (left, top, right, bottom)."""

    pixels: dict[int, UInt8]
    width: int
    height: int
    crop: tuple[int, int, int, int]

    @property
    def sizes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the pixels: pictures of equal sizes can share a batch."""
        return tuple(pixels.shape for pixels in self.pixels.values())


def read_picture(data: bytes, resolutions: Sequence[int], step: int | None = None) -> Picture:
    """Decode, crop the centre, shrink or enlarge it to each resolution (antialiased bicubic).

    The crop is a square; with `step`, of the shape of the nearest of the `buckets` of the largest resolution.
    Raises UnfitImage where the bytes are no readable image (`undecodable`) or a decompression bomb (`too_large`).
    """
    try:
        _, width, height = probe(data)
        if width * height > MAX_PIXELS:
            raise UnfitImage("too_large")
        sizes = {r: nearest_bucket(width, height, r, step) if step else (r, r) for r in resolutions}
        needed = max(
            max(w / width, h / height) for w, h in sizes.values()
        )  # of the source's size, to cover them all
        image = decode_rgb(data, shorter_edge=math.ceil(min(width, height) * needed - 1e-6))
    except UndecodableImage as error:
        raise UnfitImage("undecodable") from error
    return Picture(
        pixels={resolution: fit(image, size) for resolution, size in sizes.items()},
        width=width,
        height=height,
        crop=_whole(central_box((width, height), sizes[max(resolutions)])),
    )


def fit(image: Image.Image, size: tuple[int, int]) -> UInt8:
    """The centre of an RGB image, cropped to the shape of `size` and resized to it: (H, W, 3) uint8."""
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=central_box(image.size, size)))


def central_box(image: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest central part of an image with the shape of `size`; all (width, height)."""
    scale = min(image[0] / size[0], image[1] / size[1])
    left, top = (image[0] - size[0] * scale) / 2, (image[1] - size[1] * scale) / 2
    return left, top, image[0] - left, image[1] - top


def _whole(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    left, top = int(box[0]), int(box[1])
    return left, top, left + round(box[2] - box[0]), top + round(box[3] - box[1])


@functools.cache
def buckets(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """Sizes (width, height) in multiples of `step`, of an area of at most resolution squared and at most 1:4, as SDXL's
    trainers use; for each width the largest height, and the square."""
    most = resolution * resolution
    found = {(resolution, resolution)}
    for edge in range(step, 2 * resolution + 1, step):
        other = most // edge // step * step
        if step <= other <= 2 * resolution and max(edge, other) <= 4 * min(edge, other):
            found |= {(edge, other), (other, edge)}
    return tuple(sorted(found))


def nearest_bucket(width: int, height: int, resolution: int, step: int) -> tuple[int, int]:
    """The bucket whose shape is nearest to width:height, of two equally near the larger."""
    shape = math.log(width / height)

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(size[0] / size[1]) - shape), 9), -size[0] * size[1]

    return min(buckets(resolution, step), key=distance)


def recipe(step: int | None) -> dict[str, Any]:
    """What determines the pixels, resolutions aside."""
    return {"crop": "center", "bucket_step": step, "resize": "bicubic", "version": 1}
