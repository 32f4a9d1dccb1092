"""A 64-bit perceptual hash (pHash) of a picture: copies in another size, format or quality differ in few of its bits.

In integers, so that it is the same on every machine.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

EDGE, LOW = 32, 8  # pixels of the picture that is looked at; frequencies that make the bits
POINTS = 5  # of the picture along each edge of such a pixel: all of them would take ten times as long
_ANGLES = np.pi * np.outer(np.arange(LOW), 2 * np.arange(EDGE) + 1) / (2 * EDGE)
COSINES: npt.NDArray[np.int64] = np.rint(np.cos(_ANGLES) * (1 << 14)).astype(np.int64)


def picture_hash(image: Image.Image, view: tuple[float, float, float, float]) -> int:
    """One bit for each of the 64 lowest frequencies of a part of an RGB image: is it above their median?"""
    points = image.resize((EDGE * POINTS, EDGE * POINTS), Image.Resampling.NEAREST, box=view)
    small = np.asarray(points.convert("L"), np.int64).reshape(EDGE, POINTS, EDGE, POINTS).sum((1, 3))
    low = COSINES @ small @ COSINES.T
    bits = (low > np.median(low)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
