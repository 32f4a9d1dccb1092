"""Are features those of their own picture? Each is made again of the source's, and held against those of the samples around it.

A layer of features alone does not say where its crops lie: its base does, or they are the largest squares in the middle.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loader.format import FormatError
from loader.recipe import Recipe
from precompute.encode.features import FeatureEncoder
from precompute.shards.sample_reader import Sample
from precompute.shards.sidecar_table import read_sidecar_table
from precompute.shards.store import Store
from precompute.verification.caption_check import distance
from precompute.verification.check_folder import READING, Finding, redo
from precompute.verification.observation import Note, Observation
from precompute.verification.source_check import source_pixels

MOST = 2.0**31  # pixels of an edge that nothing tells
LONGEST = 1000  # longer edge over the shorter one of a crop
UNLIKE = 0.5  # of its norm: what a full decode and another precision change is a tenth of it

Tokens = npt.NDArray[np.float32]


class Crops:
    """Knows what part of its picture each sample was made of. base: the shards that a layer lies beside, where they are at hand."""

    def __init__(self, recipe: Recipe, base: Store | None) -> None:
        self._recipe, self._base = recipe, base
        self._known: dict[str, dict[str, list[int]]] = {}

    def of(self, sample: Sample) -> Sequence[float] | None:
        """left, top, right, bottom in pixels of the source; None where nothing here says it."""
        crop = sample.facts.get("crop") or self._in_base(sample)
        if crop:
            return _within(crop, sample.facts)
        if self._recipe.get("bucket_step") or self._recipe.get("crop", "center") != "center":
            return None
        width, height = _size(sample.facts)
        edge = min(width, height)
        left, top = (width - edge) / 2, (height - edge) / 2
        return (left, top, left + edge, top + edge) if edge else None

    def _in_base(self, sample: Sample) -> list[int] | None:
        if self._base is None:
            return None
        if sample.stem not in self._known:
            try:
                self._known[sample.stem] = _crops_of(self._base, sample.stem)
            except (FormatError, *READING):
                return None
        return self._known[sample.stem].get(sample.key)


def _size(facts: Mapping[str, Any]) -> tuple[float, float]:
    """Width and height as the sample's own facts have them; zeros where they are no numbers."""
    try:
        width, height = float(facts.get("width") or 0), float(facts.get("height") or 0)
    except (TypeError, ValueError):
        return 0.0, 0.0
    return width, height


def _within(crop: Any, facts: Mapping[str, Any]) -> Sequence[float] | None:
    """The crop, which may be a stranger's, as numbers; None where it is no part of its picture, or a hair of it."""
    try:
        left, top, right, bottom = (float(edge) for edge in crop)
    except (TypeError, ValueError):
        return None
    width, height = (size or MOST for size in _size(facts))
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        return None
    ratio = (right - left) / (bottom - top)
    return (left, top, right, bottom) if 1 / LONGEST < ratio < LONGEST else None


def _crops_of(base: Store, stem: str) -> dict[str, list[int]]:
    """The crops of a unit's rows by key. Its shards may have other names than those of the layer."""
    found: dict[str, list[int]] = {}
    for name in base.files:
        shard, _, suffix = name.rpartition(".")
        if suffix == "parquet" and stem in (shard, shard.rpartition("-")[0]):
            table = read_sidecar_table(base.read(name))
            sizes = [n for n in table.column_names if n.startswith("crop_")]
            crops = table[max(sizes, key=_resolution)].to_pylist() if sizes else []
            found |= zip(table["key"].to_pylist(), crops, strict=False)
    return found


def check_features(
    samples: Sequence[Sample],
    images: Mapping[str, bytes],
    encoder: FeatureEncoder,
    recipe: Recipe,
    crops: Crops,
) -> Iterator[Observation]:
    """Encode the sources' pictures again: features must be those of their own, not mirrored, and not of another sample's."""
    name = f"features_{encoder.spec.name}"
    again: dict[str, Tokens] = {}
    mirrored: dict[str, Tokens] = {}
    for sample in samples:
        pixels = _pixels(images.get(sample.key), crops.of(sample), encoder, recipe, sample.facts)
        if pixels is not None:
            upright = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(encoder.device)
            again[sample.key], mirrored[sample.key] = (
                encoder.tokens(turned)[0].cpu().numpy() for turned in (upright, upright.flip(-1))
            )
        elif images:
            what = f"its source image or its crop is not to be had; {name} was not compared"
            cure = ", give --beside BASE" if sample.key in images else ""
            yield Note(f"{sample.key}: {what}{cure}")
    for field, right, wrong in ((name, again, mirrored), (f"{name}_flipped", mirrored, again)):
        for sample in samples:
            fits = (
                sample.key in again and sample.arrays.get(field, np.empty(0)).shape == again[sample.key].shape
            )
            if fits and (what := _fault(sample.arrays[field], sample.key, right, wrong)):
                yield Finding(sample.shard, sample.key, f"{field} {what}", redo(sample.stem))


def _fault(
    stored: npt.NDArray[Any], key: str, right: Mapping[str, Tokens], wrong: Mapping[str, Tokens]
) -> str:
    """right, wrong: what is made of the pictures as they should be seen, and of their mirror images."""
    distances = {
        f"the source of {other}": distance(stored, tokens) for other, tokens in right.items() if other != key
    }
    distances["its source mirrored"] = distance(stored, wrong[key])
    own, nearest = distance(stored, right[key]), min(distances, key=distances.__getitem__)
    if distances[nearest] < own / 2:
        return f"is that of {nearest} (off by {min(own, 9.99):.0%} from its own, by {distances[nearest]:.0%} from that)"
    return f"is not that of its source (off by {min(own, 9.99):.0%})" if own > UNLIKE else ""


def _pixels(
    data: bytes | None,
    crop: Sequence[float] | None,
    encoder: FeatureEncoder,
    recipe: Recipe,
    facts: dict[str, Any],
) -> npt.NDArray[np.uint8] | None:
    if crop is None:
        return None
    width, height = encoder.size_of(crop[2] - crop[0], crop[3] - crop[1])
    return source_pixels(data, {**facts, "crop": crop, "crops": {}}, height, width, recipe)


def _resolution(column: str) -> int:
    digits = column.removeprefix("crop_")
    return int(digits) if digits.isdigit() else 0
