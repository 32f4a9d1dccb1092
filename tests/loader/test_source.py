"""Shards opened one by one: nothing stays open of one that is no good."""

import os
from pathlib import Path

from loader import make_loader
from tests.support.keyed_shards import FIELDS, write_shards

ONE_FIELD = [field for field in FIELDS if field.name == "moments_256"]


def test_a_bad_sidecar_leaves_no_file_open(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", [5] * 40, fields=ONE_FIELD)
    for number in range(0, 40, 2):
        (folder / f"train-{number:05d}.parquet").write_bytes(b"PAR1 nothing PAR1")
    batches = make_loader(folder, 5, extras=["key"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in batches:
        pass
    batches.close()
    assert batches.stats()["substitutes"] == 20 * 5
    assert len(os.listdir("/proc/self/fd")) <= before + 20 + 4, (
        "the good ones are kept, and a few are the loader's own"
    )
