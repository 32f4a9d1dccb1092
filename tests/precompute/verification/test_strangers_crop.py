"""Crops out of a stranger's KEY.json: what is no part of its picture is no crop, and costs neither an error nor memory."""

from typing import Any

import pytest

from precompute.shards.sample_reader import Sample
from precompute.verification.feature_check import Crops

FACTS = {"width": 640, "height": 480}


def crop_of(facts: Any) -> Any:
    return Crops({}, None).of(Sample("train-00000", 0, "train-00000", "key", "", {}, facts))


@pytest.mark.parametrize(
    "crop",
    [
        [10, 10, 10, 10],
        [64, 0, 0, 64],
        [0, 0, 64],
        [0, 0, 64, 64, 64],
        "abcd",
        7,
        {"left": 0},
        [0, 0, float("nan"), 64],
        [0, 0, float("inf"), 64],
        [-1, 0, 64, 64],
        [0, 0, 1e12, 1],
        [0, 0, 640, 481],
        [0, 0, 640, 0.001],
    ],
)
def test_what_is_no_crop(crop: Any) -> None:
    assert crop_of({**FACTS, "crop": crop}) is None


@pytest.mark.parametrize(
    "facts", [{"width": "x", "height": 2}, {"width": None}, {}, {"width": [], "height": {}}]
)
def test_sizes_that_are_no_numbers(facts: Any) -> None:
    assert crop_of(facts) is None
    assert crop_of({**facts, "crop": [0, 0, 1, 1]}) in (None, (0, 0, 1, 1))
    assert crop_of({**facts, "crop": [0, 0, 1e12, 1]}) is None


def test_a_crop_is_what_it_was() -> None:
    assert crop_of({**FACTS, "crop": [80, 0, 560, 480]}) == (80, 0, 560, 480)
    assert crop_of(FACTS) == (80, 0, 560, 480), "the largest square in the middle"
