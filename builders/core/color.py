"""Colours as a screen shows them: pixels of another colour profile become sRGB, by Little CMS.

Without this a wide-gamut photograph comes out pale, a CMYK one garish: 14 of 255 grey levels on average, for some colours 100. What has
no profile, or one that cannot be used, counts as sRGB. A profile is parsed once and kept.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

COLOR_PROFILES = ("srgb", "ignore")
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}  # of a profile that fits pixels of the mode
_CLOSE = 2  # grey levels; a profile that moves no colour further is sRGB by another name
_SRGB = ImageCms.createProfile("sRGB")


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB, as RGB or RGBA; itself where its profile asks for nothing. Bitmaps and palettes are as their colours are."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not profile:
        return image
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    mode = {"LA": "L", "RGBA": "RGB", "1": "L"}.get(image.mode, image.mode)
    transform = _transform(profile, mode) if mode in _SPACES else None
    if transform is None:
        return image
    converted = transform.apply(image.convert(mode))
    converted.info = dict(image.info)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def is_for_rgb(profile: bytes | None) -> bool:
    """Whether the profile describes RGB pixels, so that it may be kept beside them."""
    return isinstance(profile, bytes) and profile[16:20] == b"RGB "


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Make the transform of pixels of that mode and profile to sRGB; None where the profile is broken, for other pixels, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        return None if mode == "RGB" and _moves_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _moves_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    moved = np.asarray(transform.apply(Image.fromarray(cube)))
    return int(np.abs(moved.astype(int) - cube).max()) <= _CLOSE
