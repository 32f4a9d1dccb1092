"""What precompute writes, the loader reads: mirrored pictures, aspect-ratio buckets, text of varying length."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loader import make_loader, noise
from precompute import run
from tests.support.judges import arrays_by_numpy
from tests.support.tiny_models import save_t5

SCALE, SHIFT = np.float32(2.0), np.float32(0.25)  # of the toy VAE
PICTURES = 20


def write(output: Path, **options: Any) -> Path:
    toys: dict[str, Any] = {"vae": "toy", "text_encoder": ("toy",), "dtype": "float32", "resolutions": (64,)}
    run.run(run.Config("builders/demo", output, batch_size=8, **{**toys, **options}))
    return output


def final(raw: np.ndarray) -> np.ndarray:
    return ((raw - SHIFT) * SCALE).astype(np.float16)


def final_mean(moments: np.ndarray) -> np.ndarray:
    return final(moments[:4].astype(np.float32))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_once_with_its_own_caption(tmp_path: Path, workers: int) -> None:
    members = arrays_by_numpy(shards := write(tmp_path / "a", resolutions=(64, 128)))
    batches = make_loader(
        shards, 3, resolution=128, seed=5, drop_last=False, num_workers=workers, extras=["key", "caption"]
    )
    assert len(batches) == 7
    seen = []
    for batch in batches:
        for index, key in enumerate(batch["key"]):
            mean, std = np.split(members[key]["moments_128.npy"].astype(np.float32), 2)
            latents = final(mean + std * noise(5, 0, len(seen), mean.shape))
            assert np.array_equal(batch["image_latents"][index], latents)
            assert np.array_equal(batch["caption_latents"][index, 0], members[key]["caption_latents.npy"])
            assert batch["caption"][index] == members[key]["txt"].decode()
            seen.append(key)
    batches.close()
    assert set(seen) == set(members) and len(members) == PICTURES
    assert seen[PICTURES:] == seen[:1]  # the last batch is filled up from the beginning


def test_flipped_samples_are_the_mirrored_photographs(tmp_path: Path) -> None:
    members = arrays_by_numpy(shards := write(tmp_path / "a", flip=True))
    batches = make_loader(shards, 4, posterior="mean", flip_prob=0.5, extras=["key"])
    for epoch in range(2):
        flipped = 0
        for batch in batches:
            for index, key in enumerate(batch["key"]):
                upright = final_mean(members[key]["moments_64.npy"])
                mirrored = final_mean(members[key]["moments_64_flipped.npy"])
                latents = batch["image_latents"][index].numpy()
                assert np.array_equal(latents, upright) != np.array_equal(latents, mirrored)
                if np.array_equal(latents, mirrored):
                    flipped += 1
                    # The first three channels are means of red, green and blue.
                    assert np.allclose(latents[:3], upright[:3, :, ::-1], atol=0.02)
        assert 0 < flipped < PICTURES, epoch
    with pytest.raises(
        ValueError, match=r"flip_prob: .* has no moments_64_flipped; make it with precompute's --flip"
    ):
        make_loader(write(tmp_path / "b"), 4, flip_prob=0.5)


@pytest.mark.parametrize("drop_last", [True, False])
def test_buckets_make_batches_of_one_shape(tmp_path: Path, drop_last: bool) -> None:
    members = arrays_by_numpy(shards := write(tmp_path / "a", buckets=16))
    shapes, keys = set(), []
    for batch in make_loader(shards, 3, posterior="mean", drop_last=drop_last, extras=["key"]):
        shapes.add(tuple(batch["image_latents"].shape[1:]))
        for latents, key in zip(batch["image_latents"], batch["key"], strict=True):
            assert np.array_equal(latents, final_mean(members[key]["moments_64.npy"]))
        keys += batch["key"]
    assert len(shapes) > 1
    if drop_last:
        assert (
            len(keys)
            == len(set(keys))
            > PICTURES - 3 * len({m["moments_64.npy"].shape for m in members.values()})
        )
    else:
        assert set(keys) == set(members)


def test_text_of_varying_length_comes_padded_and_masked(tmp_path: Path) -> None:
    encoders = ("toy", f"t5={save_t5(tmp_path / 't5')}")
    members = arrays_by_numpy(shards := write(tmp_path / "a", text_encoder=encoders))
    lengths = set()
    for batch in make_loader(shards, 5, extras=["key"]):
        text, mask = batch["caption_latents_t5"][:, 0], batch["caption_mask_t5"]
        assert mask.dtype == torch.bool and mask.shape == text.shape[:2]
        assert mask.any(0).all(), "no longer than the longest"
        assert "caption_mask" not in batch, "the first encoder's text is of one length"
        for index, key in enumerate(batch["key"]):
            value = members[key]["caption_latents_t5.npy"]
            lengths.add(len(value))
            assert mask[index].tolist() == [True] * len(value) + [False] * (mask.shape[1] - len(value))
            assert np.array_equal(text[index, : len(value)], value)
            assert not text[index, len(value) :].any()
    assert len(lengths) > 3
