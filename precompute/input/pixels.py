"""Image bytes -> uint8 pixels at each resolution; one decode serves all.

A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still larger than the largest resolution: its DCT does
the first part of the shrinking, several times faster than decoding every pixel.
"""

import functools
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from builders.core.images import (
    MAX_PIXELS,
    ImageTooLarge,
    UndecodableImage,
    decode_rgb,
    orientation_of,
    probe,
)
from loader.bucket import Bucket
from precompute.input.picture_hash import picture_hash

MARGIN = 1.2  # a scaled edge that is hardly larger than the resolution costs sharpness: 36 dB at 1.02, 41 dB at 1.2

CENTER = (0.5, 0.5)

Box = tuple[float, float, float, float]  # left, top, right, bottom
Place = tuple[float, float]  # of a crop in its picture: 0 at the left or top, 1 at the right or bottom
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """pixels: resolution, or name of features -> (H, W, 3) uint8, a square of that edge or a bucket of that area. width, height,
    crops: in pixels of the source as a viewer sees it; crops: resolution -> (left, top, right, bottom). phash: its perceptual hash."""

    pixels: dict[int | str, UInt8]
    width: int
    height: int
    crops: dict[int, tuple[int, int, int, int]]
    phash: int | None = None

    @property
    def crop(self) -> tuple[int, int, int, int]:
        """The crop of the largest resolution; the others have another one only with buckets."""
        return self.crops[max(self.crops)]

    @property
    def bucket(self) -> Bucket:
        """The bucket of the pixels: pictures of one can share a batch."""
        return Bucket(tuple((pixels.shape[1], pixels.shape[0]) for pixels in self.pixels.values()))


BLANK = Picture({}, 0, 0, {})  # where nothing of an image is encoded


def read_picture(
    data: bytes,
    resolutions: Sequence[int],
    step: int | None = None,
    place: Place = CENTER,
    color_profile: str = "srgb",
    shape: tuple[int, int] | None = None,
    features: Mapping[str, Callable[[float, float], tuple[int, int]]] | None = None,
    covering: Sequence[int] = (),
    size: tuple[int, int] | None = None,
) -> Picture:
    """Decode, crop, shrink or enlarge to each resolution (antialiased bicubic).

    The crop is the largest square; with `step`, of the shape of the nearest of the `buckets` of each resolution: the nearest to
    the picture's own shape, or to `shape`, (width, height). features: for each name what size it wants of a crop of some shape,
    which is that of the largest resolution; without resolutions of `shape`, or square. covering: resolutions for which it is
    decoded in enough detail, so that values are those of a run that makes them too. size: width and height where the gate has seen
    them already.
    Raises UndecodableImage, whose `reject` says why: the bytes are no readable image, or a decompression bomb.
    """
    width, height = size or probe(data)[1:]
    if width * height > MAX_PIXELS:
        raise ImageTooLarge(f"{width} x {height}")
    if not width * height:
        raise UndecodableImage(f"{width} x {height}")
    nearest = shape or (width, height)
    sizes = {r: nearest_bucket(*nearest, r, step) if step else (r, r) for r in (*resolutions, *covering)}
    others = [sizes.pop(r) for r in set(covering) - set(resolutions)]
    whole = sizes[max(resolutions)] if sizes else shape or (1, 1)
    wanted = {name: size_of(*whole) for name, size_of in (features or {}).items()}
    # Of the source's size, to cover them all.
    needed = max(max(w / width, h / height) for w, h in (*sizes.values(), *wanted.values(), *others))
    edge = math.ceil(min(width, height) * needed * MARGIN)
    image = decode_rgb(data, shorter_edge=edge, color_profile=color_profile)
    view = view_of(image.size, (width, height), data)
    return Picture(
        pixels={resolution: fit(image, view, fitted, place) for resolution, fitted in sizes.items()}
        | {name: fit(image, view, fitted, place, whole) for name, fitted in wanted.items()},
        width=width,
        height=height,
        crops={r: _whole(crop_box((0, 0, width, height), fitted, place)) for r, fitted in sizes.items()},
        phash=picture_hash(image, view),
    )


def fit(
    image: Image.Image, view: Box, size: tuple[int, int], place: Place, shape: tuple[int, int] | None = None
) -> UInt8:
    """A part of an RGB image, cropped to the shape of `size`, or of `shape`, and resized to `size`: (H, W, 3) uint8."""
    box = crop_box(view, shape or size, place)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box))


def crop_box(view: Box, size: tuple[int, int], place: Place) -> Box:
    """The largest part of `view`, at `place`, that has the shape of `size`, (width, height)."""
    width, height = view[2] - view[0], view[3] - view[1]
    scale = min(width / size[0], height / size[1])
    x, y = width - size[0] * scale, height - size[1] * scale
    return (
        view[0] + x * place[0],
        view[1] + y * place[1],
        view[2] - x * (1 - place[0]),
        view[3] - y * (1 - place[1]),
    )


def place_of(crop: str, seed: int, key: str) -> Place:
    """Say where `--crop` takes its part: in the middle, or anywhere, by nothing but the seed and the sample's key."""
    if crop == "center":
        return CENTER
    digest = hashlib.sha256(f"{seed}/{key}/crop".encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") / 2**32 for i in (0, 4))  # type: ignore[return-value]


def view_of(scaled: tuple[int, int], size: tuple[int, int], data: bytes) -> Box:
    """Find where in a DCT-scaled image the picture of `size` lies.

    The scaled one is rounded up to whole pixels: 1,027 rows become 513.5, in 514. Taking it for 514 would shift the
    picture by half a pixel, which costs 10 dB. What is too much is at the right and bottom, before EXIF turns it.
    Raises UndecodableImage where it is no scaled copy of that size.
    """
    factor = next((f for f in (1, 2, 4, 8) if scaled == (-(-size[0] // f), -(-size[1] // f))), None)
    if factor is None:
        raise UndecodableImage(f"its header says {size}, its pixels are {scaled}")
    width, height = size[0] / factor, size[1] / factor
    if width == scaled[0] and height == scaled[1]:
        return 0, 0, width, height
    turned = orientation_of(Image.open(io.BytesIO(data)))
    left = scaled[0] - width if turned in (2, 3, 6, 7) else 0
    top = scaled[1] - height if turned in (3, 4, 7, 8) else 0
    return left, top, left + width, top + height


def _whole(box: Box) -> tuple[int, int, int, int]:
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


def recipe(step: int | None, crop: str = "center", color_profile: str = "srgb") -> dict[str, Any]:
    """What determines the pixels, resolutions and seed aside."""
    return {
        "crop": crop,
        "bucket_step": step,
        "resize": "bicubic",
        "color_profile": color_profile,
        "version": 2,
    }
