"""Fields of bfloat16, whose bits are stored: batches of torch's own bfloat16, with the numbers that it has."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from loader import make_loader, noise
from tests.support.keyed_shards import FIELDS, SCALE, D, arrays, write_shards

BF16 = torch.bfloat16


def numbers(key: str, name: str) -> torch.Tensor:
    return torch.from_numpy(arrays(key)[name]).to(BF16)


def bits(array: npt.NDArray[np.float16]) -> npt.NDArray[np.uint16]:
    return torch.from_numpy(array).to(BF16).view(torch.int16).numpy().view(np.uint16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = [replace(field, dtype="bfloat16") for field in FIELDS]
    return write_shards(tmp_path_factory.mktemp("bf16") / "a", [12, 8], fields=fields, stored=bits)


@pytest.mark.parametrize("caption_drop_prob", [0.0, 0.5])
@pytest.mark.parametrize("posterior", ["sample", "mean"])
def test_batches_of_bfloat16(folder: Path, posterior: str, caption_drop_prob: float) -> None:
    options = {"posterior": posterior, "caption_drop_prob": caption_drop_prob, "flip_prob": 0.0, "seed": 7}
    batches = make_loader(
        folder, 5, resolution=256, text_encoders=["", "t5"], pooled=True, extras=["key"], **options
    )
    kept = 0.0
    for number, batch in enumerate(batches):
        kept += batch["drop_caption_mask"].sum().item()
        for index, key in enumerate(batch["key"]):
            mean, std = numbers(key, "moments_256").float().chunk(2)
            if posterior == "sample":
                mean = mean + std * torch.from_numpy(noise(7, 0, 5 * number + index, (4, 4, 4)))
            found, keep = {name: batch[name][index] for name in batch}, batch["drop_caption_mask"][index]
            length = len(arrays(key)["caption_latents_t5"])
            expected = {
                "image_latents": (mean * SCALE).to(BF16),
                "caption_latents": numbers(key, "caption_latents")[None] * keep.to(BF16),
                "caption_pooled": numbers(key, "caption_pooled") * keep.to(BF16),
            }
            for name, value in expected.items():
                assert found[name].dtype == BF16 and torch.equal(found[name], value), name
            text = found["caption_latents_t5"][0]
            assert text.dtype == BF16 and text.shape[-1] == D
            if keep:
                assert torch.equal(text[:length], numbers(key, "caption_latents_t5"))
                assert not text[length:].any() and found["caption_mask_t5"].sum() == length
            else:
                assert not text.any()
    assert kept == 20 if not caption_drop_prob else 0 < kept < 20


def test_latents_of_bfloat16_are_given_as_they_are(folder: Path) -> None:
    for batch in make_loader(folder, 5, resolution=512, extras=["key"]):
        for latents, key in zip(batch["image_latents"], batch["key"], strict=True):
            assert latents.dtype == BF16 and torch.equal(latents, numbers(key, "latents_512"))
