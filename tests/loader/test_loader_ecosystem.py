"""The loader beside the libraries of others: accelerate, torchdata, webdataset; and without them."""

import gc
import itertools
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

import loader.streams
from loader import LatentDataset, as_webdataset, make_loader
from loader.reader import BatchReader
from tests.support.keyed_shards import arrays
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {"resolution": 256, "text_encoders": [""], "extras": ["key"], "seed": 3}
# webdataset does.
leaves_tars_open = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def test_accelerate_leaves_the_loader_alone_and_saves_its_state(shards: Path, tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    batches = make_loader(shards, 10, **OPTIONS)
    assert accelerator.prepare(batches) is batches
    accelerator.register_for_checkpointing(batches)
    before = [batch["key"] for batch in itertools.islice(batches, 3)]
    accelerator.save_state(str(tmp_path / "checkpoint"))
    after = [batch["key"] for batch in batches]
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert [batch["key"] for batch in batches] == after
    assert len(before) + len(after) == 10


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchdata's own
@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_stateful_loader(shards: Path, workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    whole = [batch["key"] for batch in make_loader(shards, 10, **OPTIONS)]

    def make() -> Any:
        return stateful(LatentDataset(shards, 10, **OPTIONS), batch_size=None, num_workers=workers)

    for taken in (1, 3, 4, 9):
        first = make()
        seen = [batch["key"] for batch in itertools.islice(iter(first), taken)]
        state = first.state_dict()
        again = make()
        again.load_state_dict(state)
        assert seen + [batch["key"] for batch in again] == whole


@leaves_tars_open
def test_stock_webdataset_reads_the_shards(shards: Path) -> None:
    samples = list(as_webdataset(shards))
    assert len(samples) == 100
    for sample in samples:
        expected = arrays(sample["__key__"])
        assert np.array_equal(sample["moments_256.npy"], expected["moments_256"])
        assert sample["txt"] == f"a picture of {sample['__key__']}"
    gc.collect()


@leaves_tars_open
def test_stock_webdataset_finds_foreign_tars_and_says_what_is_not_there(
    shards: Path, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.tar").symlink_to(shards / "train-00000.tar")
    assert len(list(as_webdataset(tmp_path / "foreign"))) == 20
    assert list((cache / "index").iterdir())  # and nowhere else
    with pytest.raises(ValueError, match="no such folder"):
        as_webdataset(tmp_path / "nothing")
    gc.collect()


def test_bench_command(shards: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "loader.bench",
        shards,
        "--resolution",
        "256",
        "--seconds",
        "0.5",
        "--batch-size",
        "20",
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "samples/s" in done.stdout and '"substitutes": 0' in done.stdout
    assert "image_latents        (20, 4, 4, 4) torch.float16" in done.stdout
    wrong = subprocess.run(
        [*map(str, command[:-6]), "--resolution", "9"], capture_output=True, text=True, cwd=ROOT
    )
    assert wrong.returncode == 1 and wrong.stderr.startswith("resolution=9")


def test_loading_needs_none_of_the_libraries_that_precompute_needs(shards: Path) -> None:
    program = f"""
import sys
for name in ("diffusers", "transformers", "accelerate", "datasets", "webdataset", "builders", "precompute"):
    sys.modules[name] = None
from loader import make_loader
print(sum(len(batch["key"]) for batch in make_loader({str(shards)!r}, 10, resolution=256, extras=["key"])))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "100", done.stderr


def test_memory_stays_flat_over_epochs(shards: Path) -> None:
    batches = make_loader(shards, 10, resolution=256, caption_drop_prob=0.1)
    process = psutil.Process()
    for _ in range(20):
        list(batches)
    before = process.memory_info().rss
    for _ in range(100):
        list(batches)
    assert process.memory_info().rss - before < 4 << 20
    assert len(os.listdir("/proc/self/fd")) < 200
    batches.close()


def test_a_stall_shows_in_the_log(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader.streams, "STALL", 0.1)
    read = BatchReader.read

    def slow(self: BatchReader, epoch: int, positions: Any) -> Any:
        if positions[0] == 20:
            wait_until(lambda: "for the batch at epoch 0, position 20" in caplog.text)
        return read(self, epoch, positions)

    monkeypatch.setattr(BatchReader, "read", slow)
    with caplog.at_level(logging.WARNING, logger="loader"):
        batches = make_loader(shards, 10, **OPTIONS)
        assert len(list(batches)) == 10
    assert "for the batch at epoch 0, position 20; being fetched: nothing" in caplog.text
    assert batches.stats()["waiting"] >= 0.1
    batches.close()


def test_pinned_memory_is_asked_for(shards: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    batch = next(iter(make_loader(shards, 10, pin_memory=True, **OPTIONS)))
    assert batch["image_latents"].is_pinned() and batch["caption_latents"].is_pinned()
