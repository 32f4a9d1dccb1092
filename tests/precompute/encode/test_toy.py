"""The toy codec shows a fault as a number: every demo photograph comes back at 15 dB or more, and no wrong one does."""

import numpy as np
import pytest
import torch

import builders
from precompute.encode.image import open_image_encoder
from precompute.encode.models import weights_hash
from precompute.encode.text import open_text_encoder
from precompute.encode.toy import toy_text_model
from precompute.input.pixels import read_picture


def psnr(left: torch.Tensor, right: torch.Tensor) -> float:
    """Decibels between two uint8 pictures."""
    return float(10 * torch.log10(255**2 / (left.double() - right.double()).square().mean()))


@pytest.fixture(scope="module")
def photographs() -> dict[str, torch.Tensor]:
    rows = builders.load_dataset("builders/demo", split="train", streaming=True).decode(False)
    return {
        row["key"]: torch.from_numpy(read_picture(row["image"]["bytes"], [256]).pixels[256].copy()).permute(
            2, 0, 1
        )
        for row in rows
    }


def test_every_demo_photograph_survives(photographs: dict[str, torch.Tensor]) -> None:
    encoder = open_image_encoder("toy")
    pictures = torch.stack(list(photographs.values()))
    mean, _ = encoder.encode(pictures)
    for key, source, decoded in zip(photographs, pictures, encoder.decode(mean), strict=True):
        assert psnr(source, decoded) >= 15, key


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(lambda mean, encoder: mean.flip(-1), id="flipped"),
        pytest.param(lambda mean, encoder: mean[:, [2, 1, 0, 3]], id="BGR"),
        pytest.param(lambda mean, encoder: (mean - encoder.shift) * encoder.scale, id="scaled twice"),
        pytest.param(lambda mean, encoder: mean.roll(1, 0), id="the next picture's"),
    ],
)
def test_a_fault_costs_decibels(photographs: dict[str, torch.Tensor], fault) -> None:
    encoder = open_image_encoder("toy")
    source = torch.stack([photographs["astronaut"], photographs["coffee"]])
    mean, _ = encoder.encode(source)
    assert psnr(source, encoder.decode(fault(mean, encoder))) < 15 < psnr(source, encoder.decode(mean))


def test_toy_text_model_is_the_same_for_ever() -> None:
    assert (
        weights_hash(toy_text_model()) == "fb0458b055d30ff5532f7b5ccd084ce14811fb93b5d2baa930d9241f9b85cac5"
    )


def test_toy_text_encoder_tells_captions_apart() -> None:
    states = [
        arrays["caption_latents"]
        for arrays in open_text_encoder("toy").encode(["a cat", "a cup", "", "猫" * 99])
    ]
    assert all(state.shape == (77, 64) and np.isfinite(state).all() for state in states)
    assert len({state.tobytes() for state in states}) == 4


def test_toy_text_encoder_ends_a_short_caption_with_its_end_token() -> None:
    (short,) = open_text_encoder("toy?length=20").encode(["a cat"])
    (whole,) = open_text_encoder("toy").encode(["a cat"])
    assert short["caption_latents"].shape == (20, 64)
    np.testing.assert_array_equal(short["caption_latents"], whole["caption_latents"][:20])  # causal
