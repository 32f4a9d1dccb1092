"""Decode, crop and resize a photograph to 512 and 256: precompute/input/pixels.py against a plain full decode.

    python benchmarks/pixels.py

One core. The photographs are scikit-image's, enlarged; PSNR is of the pixels against those of the full decode. The sizes
below the first would have a scaled edge that is barely larger than 512, where scaling in the DCT is at its worst. Of it pHash: the
share of our time that the perceptual hash of each picture takes.
"""

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.core.images import decode_rgb
from precompute.input.picture_hash import picture_hash
from precompute.input.pixels import read_picture

RESOLUTIONS = (512, 256)
SIZES = ((2250, 1500), (1536, 1024), (1540, 1027), (1551, 1034), (3075, 2050), (4100, 4100), (1500, 1000))
NAMES = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "stereo_motorcycle")
BEST_OF, SECONDS = 5, 1.5

Picture = TypeVar("Picture")
Pixels = list[npt.NDArray[np.uint8]]


def photographs(size: tuple[int, int]) -> list[bytes]:
    """JPEGs of quality 90."""
    found = []
    for name in NAMES:
        pixels = getattr(data, name)()
        image = Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")
        out = io.BytesIO()
        image.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


def ours(jpeg: bytes) -> Pixels:
    return list(read_picture(jpeg, RESOLUTIONS).pixels.values())


def plain(jpeg: bytes) -> list[torch.Tensor]:
    """What trainers' scripts do: decode all; for each resolution resize the shorter edge, crop the centre, normalise to
    float in [-1, 1] on the host."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    found = []
    for resolution in RESOLUTIONS:
        scale = resolution / min(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        left, top = (size[0] - resolution) // 2, (size[1] - resolution) // 2
        box = (left, top, left + resolution, top + resolution)
        pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BICUBIC).crop(box)))
        found.append(pixels.permute(2, 0, 1).float().div(255).sub(0.5).div(0.5))
    return found


def full_decode(jpeg: bytes) -> Pixels:
    """The pixels to hold ours against: every pixel decoded, and the central square to a fraction of a pixel."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) / 2, (image.height - edge) / 2
    box = (left, top, left + edge, top + edge)
    return [np.array(image.resize((r, r), Image.Resampling.BICUBIC, box=box)) for r in RESOLUTIONS]


def rate(read: Callable[[Picture], object], pictures: list[Picture]) -> float:
    """Images a second, the best of some rounds."""
    best = 0.0
    for _ in range(BEST_OF):
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS / BEST_OF or count < len(pictures):
            read(pictures[count % len(pictures)])
            count += 1
        best = max(best, count / (time.perf_counter() - started))
    return best


def psnr(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / max(np.square(one.astype(float) - other).mean(), 1e-9)))


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"{'source':>12} {'plain img/s':>12} {'ours img/s':>12} {'ratio':>7} {'of it pHash':>12} {'lowest PSNR':>12}  by resolution"
    )
    for size in SIZES:
        jpegs = photographs(size)
        slow, fast = rate(plain, jpegs), rate(ours, jpegs)
        pictures = [decode_rgb(jpeg, shorter_edge=615) for jpeg in jpegs]
        hashed = rate(lambda picture: picture_hash(picture, (0, 0, *picture.size)), pictures)
        quality = [[psnr(a, b) for a, b in zip(ours(jpeg), full_decode(jpeg), strict=True)] for jpeg in jpegs]
        lowest = ", ".join(
            f"{resolution}: {min(row[i] for row in quality):.1f}" for i, resolution in enumerate(RESOLUTIONS)
        )
        print(
            f"{f'{size[0]}x{size[1]}':>12} {slow:>12.1f} {fast:>12.1f} {fast / slow:>6.2f}x {fast / hashed:>12.2%}"
            f" {min(min(quality)):>9.1f} dB"
            f"  {lowest}"
        )


if __name__ == "__main__":
    main()
