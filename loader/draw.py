"""What is random in a sample: noise, dropped captions and flips, each a pure function of (seed, epoch, position)."""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from loader.captions import CaptionChoice
from loader.counter_rng import Integers, keyed, normal, uniform
from loader.members import Array
from loader.order import I64

NOISE, DROP, FLIP, CAPTION = 11, 12, 13, 14  # what a hash is for; order.py has 1 to 3
BOOL = npt.NDArray[np.bool_]


def noise(seed: int, epoch: int, position: int, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """The standard normal noise of the sample at `position` of `epoch`: `latents = (mean + std * noise - shift) * scale`."""
    key = keyed(seed, NOISE, epoch, np.array([position]))
    return normal(key, int(np.prod(shape))).reshape(*shape)


@dataclass(frozen=True)
class Draw:
    """What is random in a sample.

    caption_drop_prob: of all encoders at once, or of each that is read by its name. null: the empty caption's arrays by field name, which
    stand for dropped ones; where there are none zeros do. mark_padding: whether a batch says which samples only fill it up.
    caption: which one of a sample's.
    """

    seed: int
    posterior: Literal["sample", "mean"]
    caption_drop_prob: float | Mapping[str, float]
    flip_prob: float
    null: Mapping[str, Array]
    mark_padding: bool
    caption: CaptionChoice

    def draw(self, epoch: int, positions: I64, encoders: Collection[str], mirrored: bool) -> "Drawn":
        """What comes of it for the samples at some positions. mirrored: whether they have mirror images."""
        chances = self.caption_drop_prob
        flipped = self._chance(self.flip_prob if mirrored else 0.0, FLIP, epoch, positions)
        which = uniform(keyed(self.seed, CAPTION, epoch, positions))
        if isinstance(chances, Mapping):
            dropped = {
                name: self._chance(chances[name], DROP, epoch, positions, zlib.crc32(name.encode()))
                for name in encoders
            }
            return Drawn(flipped, dropped, True, which)
        all_at_once = self._chance(chances, DROP, epoch, positions)
        return Drawn(flipped, dict.fromkeys({*encoders, ""}, all_at_once), False, which)

    def _chance(self, probability: float, purpose: int, epoch: int, *parts: Integers) -> BOOL:
        if not probability:
            assert isinstance(parts[0], np.ndarray)
            return np.zeros(len(parts[0]), bool)
        return uniform(keyed(self.seed, purpose, epoch, *parts)) < probability


@dataclass(frozen=True)
class Drawn:
    """What was drawn for some samples. flipped: True at mirror images. dropped: True at dropped captions, by encoder.

    by_encoder: whether each encoder's are dropped by themselves. caption: a number in [0, 1) that decides which caption it is.
    """

    flipped: BOOL
    dropped: Mapping[str, BOOL]
    by_encoder: bool
    caption: npt.NDArray[np.float64]

    def drop_masks(self) -> dict[str, torch.Tensor]:
        """(B,) float32, 0 where dropped: one for all encoders, or one for each where each is dropped by itself."""
        names = sorted(self.dropped) if self.by_encoder else [""]
        masks = {name: 1.0 - torch.from_numpy(self.dropped[name]).float() for name in names}
        return {f"drop_caption_mask_{name}".removesuffix("_"): mask for name, mask in masks.items()}
