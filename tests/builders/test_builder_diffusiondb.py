"""DiffusionDB: what lies on a boundary."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.raw import diffusiondb

RUDE = float(np.float32(0.9))  # the prompt's score of the image `rude`, as the table holds it


@pytest.mark.parametrize(
    ("threshold", "rejects"), [(RUDE, None), (float(np.nextafter(np.float32(0.9), np.float32(0))), "unsafe")]
)
def test_a_score_on_the_threshold_passes(build: Any, tmp_path: Path, threshold: Any, rejects: Any) -> None:
    diffusiondb.make(tmp_path / "raw")
    rows = build(
        "diffusiondb",
        "2m",
        data_dir=str(tmp_path / "raw"),
        parts="1",
        safety_threshold=threshold,
        keep_rejected=True,
    )
    assert {row["key"]: row["reject"] for row in rows}["rude"] == rejects


@pytest.mark.parametrize(("part", "folder"), [(1, 1), (9_999, 1), (10_000, 1), (10_001, 2), (14_000, 2)])
def test_the_large_set_lies_in_two_folders_of_ten_thousand(tmp_path: Path, part: Any, folder: Any) -> None:
    import datasets

    builder = datasets.load_dataset_builder("builders/diffusiondb", parts=str(part), cache_dir=str(tmp_path))
    (archive,) = builder._sources()["train"].archives
    assert archive.path == f"diffusiondb-large-part-{folder}/part-{part:06d}.zip"
