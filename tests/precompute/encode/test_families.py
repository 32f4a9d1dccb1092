"""Every family of autoencoders through the command: run, run again, and what a loader then reads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loader import make_loader
from tests.precompute.encode.test_image import FAMILIES
from tests.support import tiny_models
from tests.support.launching import run_here, run_precompute

SAVE: dict[str, Callable[[Path], Path]] = {name: family[0] for name, family in FAMILIES.items()}
SAVE["playground 2.5"] = lambda folder: tiny_models.save_kl(
    folder, latents_mean=[-1.6, 0.4, -0.3, -2.1], latents_std=[8.4, 5.9, 5.4, 5.3], scaling_factor=0.5
)


@pytest.mark.parametrize("name", SAVE)
def test_a_run_finishes_is_resumed_and_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = SAVE[name](tmp_path / "model"), tmp_path / "shards"
    flags = [
        "builders/demo",
        "--output",
        output,
        "--vae",
        model,
        "--text-encoder",
        "toy",
        "--resolutions",
        "64",
    ]
    flags += ["--limit", "4", "--dtype", "float32"]
    assert "0 of 1 units finished before" in run_here(monkeypatch, capsys, *flags)
    again = (
        run_precompute(*flags).stdout if name == "playground 2.5" else run_here(monkeypatch, capsys, *flags)
    )
    assert "1 of 1 units finished before" in again
    batches = list(make_loader(output, 4, resolution=64))
    assert [batch["image_latents"].shape[0] for batch in batches] == [4]
    assert np.isfinite(batches[0]["image_latents"].numpy()).all()
