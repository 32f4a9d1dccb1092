"""The image column's type: bytes as the source has them, pixels as RGB.

`datasets.Image(mode="RGB")` itself drops an alpha channel, whatever colour lies under it, and clips 16-bit greys to white.
"""

from typing import Any, ClassVar

import datasets

from builders.core.images import UndecodableImage, decode_rgb


class RgbImage(datasets.Image):
    """`datasets.Image` that decodes as `images.decode_rgb`: first frame, upright, in sRGB, transparency on white, 16-bit greys scaled.

    Stored as `Image(mode="RGB")`, so that a dataset saved or pushed loads without this package; it then decodes as that does.
    For the pixels in the source's own mode: `cast_column("image", datasets.Image())`.
    """

    color_profile: ClassVar[str] = "srgb"

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        if self.decode and isinstance(value, dict) and value["bytes"] is not None:
            try:
                return decode_rgb(value["bytes"], color_profile=self.color_profile)
            except UndecodableImage as error:
                raise UndecodableImage(
                    f"image of {len(value['bytes']):,} bytes: {error}. It is damaged in its middle: load with check_pixels=True, "
                    "which counts such pictures as undecodable, or read bytes by cast_column('image', datasets.Image(decode=False))"
                ) from error
        return super().decode_example(value, token_per_repo_id)

    def __eq__(self, other: object) -> bool:  # to its stored self, so that the two concatenate
        return isinstance(other, datasets.Image) and (self.decode, self.mode) == (other.decode, other.mode)


class StoredRgbImage(RgbImage):
    """`RgbImage` that leaves the numbers as they are stored, whatever colours they mean."""

    color_profile: ClassVar[str] = "ignore"


RGB_IMAGES = {kind.color_profile: kind(mode="RGB") for kind in (RgbImage, StoredRgbImage)}


def restore_rgb_image(info: datasets.DatasetInfo, color_profile: str) -> None:
    """Makes the image column this type again where it was stored."""
    features, image = info.features or {}, RGB_IMAGES[color_profile]
    if features.get("image") == image:  # else it is the caller's own choice
        features["image"] = image
