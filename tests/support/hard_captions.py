"""Seven hard captions and the empty one: photographs that have them, and shards of these held against what a pipeline makes of each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from loader import make_loader
from loader.format import Manifest

Rows = dict[str, torch.Tensor]
EDGE = 64
TINY_RUN = [
    "--caption-cleaning",
    "none",
    "--options",
    "min_image_size=1",
    "--resolutions",
    str(EDGE),
    "--dtype",
    "float32",
]
TINY_RUN += ["--num-threads", "1"]
CAPTIONS = [
    "two cats sleeping on a red sofa",
    "two cats sleeping on a red sofa",
    "a coffee cup beside a book, " * 160 + "the end",
    "一只猫坐在红色的沙发上，背景是“大海”",
    'a sign that says "{}" and {curly} {0} braces',
    "the tokens <|im_start|> [INST] </s> <bos> of a chat<|im_end|>",
    "A Red NEON Sign With The Words 'OPEN LATE' And \"Café 24\"",
]


def save_photos(folder: Path) -> Path:
    """A picture for each of the captions, NUMBER.png beside NUMBER.txt."""
    random = np.random.RandomState(0)
    for number, caption in enumerate(CAPTIONS):
        small = random.randint(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((EDGE, EDGE), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def held(
    output: Path, rows: Callable[[str, bool], Rows], pooled: bool = False
) -> tuple[dict[str, Any], float]:
    """The one batch that shards of the photographs give, and the largest difference of its text and of the empty caption's.

    rows: what is expected of a caption by field, and whether it is asked for as the one that stands for none.
    """
    (batch,) = make_loader(
        output, len(CAPTIONS), shuffle=False, posterior="mean", pooled=pooled, extras=["key"]
    )
    off = 0.0
    for row, number in enumerate(numbers(batch)):
        for field, states in rows(CAPTIONS[number], False).items():
            what = f"{field} of {CAPTIONS[number][:40]!r}"
            off = max(off, same(stored(batch, field, row), states, what))
    null, expected = np.load(output / "null_caption.npz"), rows("", True)
    assert set(null) == set(expected) == {field for field in batch if field in null}
    for field, states in expected.items():
        what = f"{field} of the empty caption"
        off = max(off, same(torch.from_numpy(null[field]).float(), states, what))
    return batch, off


def numbers(batch: dict[str, Any]) -> list[int]:
    """Which of the captions each row has."""
    return [int(key.rsplit("_", 1)[-1]) for key in batch["key"]]


def real(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(1, T, D) to the rows that the mask shows."""
    return states[0][mask[0].bool()]


def open_manifest(folder: Path) -> Manifest:
    return Manifest.from_json((folder / "manifest.json").read_bytes())


def stored(batch: dict[str, Any], field: str, row: int) -> torch.Tensor:
    """What a trainer takes of a caption: the rows that the mask shows."""
    if field.startswith("caption_pooled"):
        return batch[field][row].float()
    states, mask = batch[field][row, 0].float(), batch.get(field.replace("latents", "mask", 1))
    return states if mask is None else states[mask[row]]


def same(
    found: torch.Tensor, expected: torch.Tensor, what: str, roundings: int = 1, offset: float = 0.0
) -> float:
    """The largest difference, which is float16's rounding at most. Rows of zeros behind the others are padding."""
    if expected.dim() == 2 and len(expected) > len(found):
        assert not expected[len(found) :].any(), what
        expected = expected[: len(found)]
    assert found.shape == expected.shape, what
    rounding = (roundings * expected.abs() + offset) * 2**-11 + 2e-5
    assert ((found - expected).abs() <= rounding).all(), (
        f"{what}: off by {(found - expected).abs().max():.1e}"
    )
    return float((found - expected).abs().max()) if found.numel() else 0.0
