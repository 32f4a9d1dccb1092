"""Mirroring, dropping and noise are drawn apart: no draw says anything of another."""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from loader import draw, make_loader, order
from loader.captions import CaptionChoice
from tests.support.binomial import assert_frequency
from tests.support.keyed_shards import SCALE, arrays

OPTIONS = {"resolution": 256, "text_encoders": [""], "extras": ["key"], "shuffle": False}
EPOCHS, SAMPLES = 4, 100
GOLDEN_NOISE = [0.5931491851806641, 0.2003975510597229, -0.15965555608272552]
GOLDEN_FLIPS = [0, 0, 1, 0, 1, 1, 1, 1]
GOLDEN_CAPTIONS = [0.42641586994582603, 0.46814680224520566]
GOLDEN_DROPS = [1, 0, 0, 0, 0, 1, 1, 0]
GOLDEN_DROPS_APART = {"": [0, 1, 0, 0, 1, 1, 0, 1], "t5": [0, 1, 0, 1, 0, 0, 1, 0]}


def draws(shards: Path, seed: int) -> dict[str, npt.NDArray[np.bool_]]:
    """Whether each sample of each epoch was mirrored, and whether its caption was dropped; found in the batches alone."""
    loader = make_loader(
        shards, 10, flip_prob=0.5, caption_drop_prob=0.5, posterior="mean", seed=seed, **OPTIONS
    )
    flipped, dropped = [], []
    for _ in range(EPOCHS):
        for batch in loader:
            dropped += (batch["drop_caption_mask"] == 0).flatten().tolist()
            for key, latents in zip(batch["key"], batch["image_latents"].float().numpy(), strict=True):
                plain, mirrored = (
                    np.abs(latents - SCALE * arrays(key)[name][:4].astype(np.float32)).max()
                    for name in ("moments_256", "moments_256_flipped")
                )
                flipped.append(bool(mirrored < plain))
    loader.close()
    return {"flips": np.array(flipped), "drops": np.array(dropped)}


def test_no_two_draws_hash_for_the_same_purpose() -> None:
    """One hash for two of them would let what is dropped tell the noise, and the noise the order."""
    purposes = [order.SHARDS, order.WINDOWS, order.DETOURS, draw.NOISE, draw.DROP, draw.FLIP, draw.CAPTION]
    assert len(set(purposes)) == len(purposes)


def test_golden_draws() -> None:
    """Whoever changes this gives another batch to every run that goes on."""

    def drawn(chances: float | dict[str, float]) -> draw.Drawn:
        what = draw.Draw(0, "sample", chances, 0.5, {}, False, CaptionChoice())
        return what.draw(1, np.arange(8), ["", "t5"], True)

    assert draw.noise(0, 1, 7, (3,)).tolist() == pytest.approx(GOLDEN_NOISE)
    assert drawn(0.5).flipped.tolist() == GOLDEN_FLIPS
    assert drawn(0.5).caption[:2].tolist() == GOLDEN_CAPTIONS
    assert {tuple(mask.tolist()) for mask in drawn(0.5).dropped.values()} == {tuple(GOLDEN_DROPS)}
    apart = drawn({"": 0.5, "t5": 0.5}).dropped
    assert {name: mask.tolist() for name, mask in apart.items()} == GOLDEN_DROPS_APART


def test_flips_drops_and_epochs_and_seeds_are_independent(shards: Path) -> None:
    found = draws(shards, 1)
    other = draws(shards, 2)
    for values in [*found.values(), *other.values()]:
        assert_frequency(int(values.sum()), values.size, 0.5)
    assert abs(np.corrcoef(found["flips"], found["drops"])[0, 1]) < 0.2
    for name in ("flips", "drops"):
        assert abs(np.corrcoef(found[name], other[name])[0, 1]) < 0.2, "of another seed"
        epochs = found[name].reshape(EPOCHS, SAMPLES)
        assert np.abs(np.corrcoef(epochs) - np.eye(EPOCHS)).max() < 0.35, "of another epoch"


def test_captions_are_dropped_as_often_as_was_asked_for(shards: Path, more_shards: Path) -> None:
    """It holds over ten epochs, in the whole of a mixture and in each of its paths; each encoder's by a chance of its own."""
    chances = {"": 0.1, "t5": 0.35}
    options = {**OPTIONS, "text_encoders": ["", "t5"], "flip_prob": 0.25, "posterior": "mean", "seed": 7}
    loader = make_loader([shards, more_shards], 10, weights=[2, 3], caption_drop_prob=chances, **options)
    counts: Counter[tuple[str, str]] = Counter()
    for _ in range(10):
        for batch in loader:
            keep = {name: batch[f"drop_caption_mask_{name}".removesuffix("_")].tolist() for name in chances}
            for place, key in enumerate(batch["key"]):
                plain = SCALE * arrays(key)["moments_256"][:4].astype(np.float32)
                flipped = np.abs(batch["image_latents"][place].float().numpy() - plain).max() > 0.01
                counts.update({(key[0], "samples"): 1, (key[0], "flips"): int(flipped)})
                counts.update({(key[0], name): 1 - int(keep[name][place]) for name in chances})
    loader.close()
    draws = {path: counts[path, "samples"] for path in "km"}
    assert draws == {"k": 10 * len(loader) * 4, "m": 10 * len(loader) * 6}
    for path, number in draws.items():
        assert_frequency(counts[path, "flips"], number, 0.25)
        for name, chance in chances.items():
            assert_frequency(counts[path, name], number, chance)
