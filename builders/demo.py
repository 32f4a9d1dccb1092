"""Twenty real photographs and pictures that ship inside the scikit-image wheel, captioned by hand: the main job without a download.

load_dataset("builders/demo", split="train")        # 22 rows, 20 records; two pages of text are too small for the gate
"""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any, ClassVar

from builders.core.base import ImageCaptionBuilder, make_key
from builders.core.config import ImageCaptionConfig
from builders.core.errors import MissingSourceError
from builders.core.record import SourceRow

_NUM_SHARDS = 4

_CAPTIONS = {
    "astronaut.png": (
        "A smiling astronaut in an orange flight suit in front of a flag and a model of the space shuttle",
        "Portrait of a woman with short blond hair in an orange NASA suit, her helmet beside her",
    ),
    "brick.png": (
        "A pavement of long grey bricks in rows",
        "Black and white photograph of a brick surface, seen at an angle",
    ),
    "camera.png": (
        "A man in a dark coat looks through a film camera on a tripod",
        "Black and white photograph of a cameraman on a lawn, tall buildings far behind him",
    ),
    "cell.png": (
        "A single bright cell on a dark grey ground",
        "Microscope image of one round cell with a dark rim",
    ),
    "chelsea.png": (
        "Close-up of a tabby cat with green eyes",
        "The face of a ginger and brown cat, whiskers spread, looking past the camera",
        "A cat named Chelsea",
    ),
    "clock_motion.png": (
        "A wall clock, blurred by motion",
        "A pale round shape smeared sideways on a grey wall",
    ),
    "coffee.png": (
        "A cup of espresso on a red saucer with a spoon",
        "Coffee in a red and white cup on a wooden table, seen from above",
    ),
    "coins.png": (
        "Four rows of ancient coins on a dark cloth",
        "Black and white photograph of twenty-four Greek coins from Pompeii",
    ),
    "color.png": (
        "A colour wheel on black, white in the middle",
        "All hues in a circle, red at the top and cyan at the bottom",
    ),
    "grass.png": (
        "A meadow of dry and fresh grass from above",
        "Black and white texture of tangled blades of grass and clover",
    ),
    "gravel.png": (
        "Gravel, thousands of small sharp stones",
        "Black and white texture of crushed stone from above",
    ),
    "horse.png": ("The black silhouette of a standing horse on white", "Outline of a horse, facing right"),
    "hubble_deep_field.jpg": (
        "Thousands of distant galaxies in a small patch of black sky",
        "The Hubble deep field: orange, white and blue galaxies on black",
    ),
    "ihc.png": (
        "Stained tissue under a microscope, brown glands among blue nuclei",
        "Colon tissue, stained brown and blue",
    ),
    "logo.png": (
        "A round logo of a snake, half green and half orange",
        "The scikit-image logo: a winding white line between a green and an orange snake",
    ),
    "moon.png": (
        "Craters and hills on the grey surface of the moon",
        "The moon from orbit, lit from the side",
    ),
    "motorcycle_left.png": (
        "A red motorcycle in a garage full of shelves and boxes",
        "A red motorbike on its stand on a concrete floor, the left picture of a stereo pair",
    ),
    "motorcycle_right.png": (
        "A shiny red motorcycle parked in a cluttered workshop",
        "A red motorbike on its stand on a concrete floor, the right picture of a stereo pair",
    ),
    "page.png": (
        "A printed page about region-based segmentation",
        "Black text on a page that is lit from one side",
    ),
    "retina.jpg": (
        "A human retina, red vessels branching from a bright spot",
        "Photograph of the back of an eye: an orange disc on black with dark red veins",
    ),
    "rocket.jpg": (
        "A white rocket on its launch pad at dusk between four towers",
        "A Falcon 9 rocket under a dark blue sky, flood-lit from below",
    ),
    "text.png": ("Handwritten formulas on lined paper", "Mathematics in pencil, seen at a slant"),
}


class Demo(ImageCaptionBuilder):
    DESCRIPTION = "Photographs and pictures of scikit-image's data module with hand-written captions."
    HOMEPAGE = "https://scikit-image.org/docs/stable/api/skimage.data.html"
    LICENSE = "CC0 and public domain, for the most part; see skimage/data/README.txt"
    CAPTION_KIND = "human"
    BUILDER_CONFIGS: ClassVar = [ImageCaptionConfig(name="default", version=ImageCaptionBuilder.VERSION)]

    def __init__(self, *args: Any, data_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, data_dir=data_dir or _find_photographs(), **kwargs)

    def _shards(self, dl_manager: Any) -> dict[str, list[tuple[str, ...]]]:
        names = sorted(_CAPTIONS)
        size = -(-len(names) // _NUM_SHARDS)
        return {"train": [tuple(names[start : start + size]) for start in range(0, len(names), size)]}

    def _rows(self, shard: tuple[str, ...]) -> Iterator[SourceRow]:
        for name in shard:
            path = os.path.join(self.config.data_dir, name)
            image = None
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    image = file.read()
            yield SourceRow(
                make_key(os.path.splitext(name)[0]), image, _CAPTIONS[name], f"skimage/data/{name}"
            )


def _find_photographs() -> str:
    spec = importlib.util.find_spec("skimage")  # finds the folder, imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise MissingSourceError(
            'builders/demo: its photographs come with scikit-image: pip install "latentmill[demo]"'
        )
    return os.path.join(spec.submodule_search_locations[0], "data")
