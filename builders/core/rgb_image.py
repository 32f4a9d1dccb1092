"""The image column's type: bytes as the source has them, pixels as RGB.

`datasets.Image(mode="RGB")` itself drops an alpha channel, whatever colour lies under it, and clips 16-bit greys to white.
"""

from typing import Any

import datasets

from builders.core.images import decode_rgb


class RgbImage(datasets.Image):
    """`datasets.Image` that decodes as `images.decode_rgb`: first frame, upright, transparency on white, 16-bit greys scaled.

    Stored as `Image(mode="RGB")`, so that a dataset saved or pushed loads without this package; it then decodes as that does.
    For the pixels in the source's own mode: `cast_column("image", datasets.Image())`.
    """

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        if self.decode and isinstance(value, dict) and value["bytes"] is not None:
            return decode_rgb(value["bytes"])
        return super().decode_example(value, token_per_repo_id)

    def __eq__(self, other: object) -> bool:  # to its stored self, so that the two concatenate
        return isinstance(other, datasets.Image) and (self.decode, self.mode) == (other.decode, other.mode)


RGB_IMAGE = RgbImage(mode="RGB")


def restore_rgb_image(info: datasets.DatasetInfo) -> None:
    """Makes the image column this type again where it was stored."""
    features = info.features or {}
    if features.get("image") == RGB_IMAGE:  # else it is the caller's own choice
        features["image"] = RGB_IMAGE
