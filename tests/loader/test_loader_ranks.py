"""Ranks are what they are when iteration begins, whoever started the processes, and are never guessed."""

import itertools
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.utils.data import DataLoader

from loader import LatentDataset, make_loader
from loader.ranks import LAUNCHERS, LOCAL_RANKS, NODE_RANKS, present_rank
from tests.support.forked import forking

OPTIONS: dict[str, Any] = {"resolution": 256, "text_encoders": [""], "extras": ["key"], "seed": 3}
NAMES = {name for pair in LAUNCHERS for name in pair} | {*LOCAL_RANKS, *NODE_RANKS, "LOCAL_WORLD_SIZE"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for pair in text.split():
        monkeypatch.setenv(*pair.split("="))


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ("", (0, 1)),
        ("RANK=1 WORLD_SIZE=4", (1, 4)),
        ("RANK=1 WORLD_SIZE=4 SLURM_PROCID=0 SLURM_NTASKS=2", (1, 4)),
        ("WORLD_SIZE=2 LOCAL_RANK=1 NODE_RANK=0", (1, 2)),  # Lightning's launcher
        ("WORLD_SIZE=2 LOCAL_RANK=1", (1, 2)),
        ("WORLD_SIZE=4 LOCAL_RANK=1 NODE_RANK=1 LOCAL_WORLD_SIZE=2", (3, 4)),
        ("WORLD_SIZE=4 LOCAL_RANK=1 NODE_RANK=1", (None, 4)),
        ("WORLD_SIZE=2", (None, 2)),
        ("WORLD_SIZE=1", (0, 1)),
        ("SLURM_PROCID=1 SLURM_NTASKS=2", (1, 2)),
        ("SLURM_PROCID=1 SLURM_NTASKS=8 SLURM_STEP_NUM_TASKS=2", (1, 2)),
        ("OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2", (1, 2)),
        ("PMI_RANK=2 PMI_SIZE=3", (2, 3)),
        ("RANK=0", (0, 1)),
    ],
)
def test_launchers_are_understood(
    monkeypatch: pytest.MonkeyPatch, environment: str, expected: tuple[int | None, int]
) -> None:
    set_all(monkeypatch, environment)
    rank = present_rank()
    assert (rank.number, rank.world_size) == expected


def test_a_batch_script_with_the_words_of_srun_is_told_of(
    monkeypatch: pytest.MonkeyPatch, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    set_all(monkeypatch, "SLURM_PROCID=0 SLURM_NTASKS=2")
    assert len(make_loader(shards, 5, **OPTIONS)) == 10
    assert "rank 0 of 2 by SLURM_PROCID, SLURM_NTASKS, and no step of srun; if it is the only" in caplog.text
    caplog.clear()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    make_loader(shards, 5, **OPTIONS)
    assert not caplog.text


@pytest.mark.parametrize("environment", ["RANK=1", "RANK=2 WORLD_SIZE=2", "LOCAL_RANK=3 WORLD_SIZE=2"])
def test_an_environment_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, environment: str) -> None:
    set_all(monkeypatch, environment)
    with pytest.raises(ValueError, match="give rank= and world_size="):
        present_rank()


def test_a_rank_that_nothing_tells_is_not_guessed(monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    set_all(monkeypatch, "WORLD_SIZE=2")
    batches = make_loader(shards, 5, **OPTIONS)
    assert len(batches) == 10
    with pytest.raises(ValueError, match="nothing says which rank this process is; initialise"):
        next(iter(batches))
    set_all(monkeypatch, "LOCAL_RANK=1")
    assert len(list(batches)) == 10


def copied(*arguments: Any, **options: Any) -> LatentDataset:
    """One that came from another process, as a trainer's pickle gives it."""
    dataset: LatentDataset = pickle.loads(pickle.dumps(LatentDataset(*arguments, **options)))
    return dataset


@pytest.mark.parametrize("make", [make_loader, LatentDataset, copied])
def test_a_loader_made_before_the_launcher_spoke_deals_out_each_sample_once(
    monkeypatch: pytest.MonkeyPatch, shards: Path, make: Any
) -> None:
    loaders = [make(shards, 5, **OPTIONS) for _ in range(2)]
    keys = []
    for rank, batches in enumerate(loaders):
        set_all(monkeypatch, f"RANK={rank} WORLD_SIZE=2")
        assert len(batches) == 10
        keys.append([key for batch in batches for key in batch["key"]])
    assert [len(k) for k in keys] == [50, 50] and len({*keys[0], *keys[1]}) == 100


@pytest.mark.parametrize(("before", "after"), [((0, 1), (0, 2)), ((1, 2), (0, 1)), ((1, 2), (0, 2))])
def test_another_place_in_another_world_is_adopted_with_the_next_epoch(
    monkeypatch: pytest.MonkeyPatch, shards: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    def keys() -> list[str]:
        return [key for batch in batches for key in batch["key"]]

    set_all(monkeypatch, "RANK={} WORLD_SIZE={}".format(*before))
    batches = make_loader(shards, 5, partitions=1, **OPTIONS)
    assert len(keys()) == 100 // before[1]
    set_all(monkeypatch, "RANK={} WORLD_SIZE={}".format(*after))
    found = keys()
    assert len(batches) == 20 // after[1] and batches.dataset.epoch == 2
    batches = make_loader(shards, 5, partitions=1, **OPTIONS)
    batches.set_epoch(1)
    assert sorted(found) == sorted(keys())


def test_a_world_too_large_for_the_samples_is_told_when_iteration_begins(
    monkeypatch: pytest.MonkeyPatch, shards: Path
) -> None:
    batches = make_loader(shards, 60, **OPTIONS)
    set_all(monkeypatch, "RANK=0 WORLD_SIZE=2")
    with pytest.raises(ValueError, match="batch_size=60 on 2 ranks: 100 samples do not fill one batch each"):
        next(iter(batches))


def _train(rank: int, folder: str, port_file: str, out: Any) -> None:
    """One of two processes: loaders first, then the process group, as scripts do that know nothing of either."""
    # Those of the second rank begin anew, and get the loader as spawned ones do, from a server that has imported it.
    workers: dict[str, Any] = {"num_workers": 1, "multiprocessing_context": ("fork", "forkserver")[rank]}
    multiprocessing.set_forkserver_preload(["loader"])
    made = {
        "threads": make_loader(folder, 5, **OPTIONS),
        "workers": make_loader(folder, 5, **workers, **OPTIONS),
        "DataLoader": DataLoader(LatentDataset(folder, 5, **OPTIONS), batch_size=None),
        "DataLoader, workers": DataLoader(LatentDataset(folder, 5, **OPTIONS), batch_size=None, **workers),
    }
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    for name, batches in made.items():
        out.put((name, rank, len(batches), [key for batch in batches for key in batch["key"]]))
    dist.destroy_process_group()


def test_a_process_group_that_comes_after_the_loader_is_adopted(shards: Path, tmp_path: Path) -> None:
    context = forking()
    out = context.Queue()
    processes = [
        context.Process(target=_train, args=(rank, str(shards), str(tmp_path / "store"), out))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    results = sorted(out.get(timeout=240) for _ in range(8))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for name, group in itertools.groupby(results, key=lambda result: result[0]):
        (_, _, length, first), (_, _, _, second) = group
        assert length == 10 and len(first) == len(second) == 50, name
        assert len({*first, *second}) == 100, name
