"""Exactly once, in one order, whoever reads: ranks, workers, and those who come back from a checkpoint."""

import gc
import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from loader import LatentDataset, make_loader
from tests.support.forked import forking
from tests.support.waiting import wait_until

WORLDS = [1, 2, 3, 4, 8]


OPTIONS: dict[str, Any] = {
    "resolution": 256,
    "text_encoders": [""],
    "extras": ["key"],
    "seed": 3,
    "shuffle_window": 32,
}


def stream(
    shards: Any,
    world_size: int,
    batch_size: int,
    state: Any = None,
    batches: int | None = None,
    **options: Any,
) -> Any:
    """(keys, latents, state) in global order: ranks simulated one after another; `batches` of the epoch, or all."""
    parts, states = [], []
    for rank in range(world_size):
        options_of_rank = {**OPTIONS, **options, "rank": rank, "world_size": world_size}
        workers = options_of_rank.pop("num_workers", 0)
        loader = make_loader(shards, batch_size, num_workers=workers, **options_of_rank)
        if state is not None:
            loader.load_state_dict(state)
        parts.append(list(itertools.islice(loader, batches)))
        states.append(loader.state_dict())
        loader.close()
    assert all(other == states[0] for other in states)
    assert len({len(part) for part in parts}) == 1
    return *in_global_order(parts), states[0]


def by_workers(shards: Any, world_size: int, workers: int, state: Any, **options: Any) -> Any:
    """(keys, latents) of the rest of the epoch, one sample a batch: workers take turns, as torch's DataLoader has them do."""
    parts = []
    for rank in range(world_size):
        dataset = LatentDataset(shards, 1, rank=rank, world_size=world_size, **{**OPTIONS, **options})
        dataset.load_state_dict(state)
        turns = itertools.cycle([dataset.sampler.turns(worker, workers) for worker in range(workers)])
        mine = itertools.takewhile(lambda turn: turn[0] == state["epoch"], map(next, turns))
        parts.append([dataset.reader.read(*turn)[0] for turn in mine])
    return in_global_order(parts)


def in_global_order(parts: Any) -> tuple[list[str], torch.Tensor]:
    """Keys and latents of the ranks' batches, step by step."""
    ordered = [batch for step in zip(*parts, strict=True) for batch in step]
    keys = [key for batch in ordered for key in batch["key"]]
    return keys, torch.cat([batch["image_latents"] for batch in ordered]) if ordered else torch.empty(0)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("mixture", [False, True])
def test_the_global_stream_is_the_same_for_every_world_size(
    shards: Path, more_shards: Path, world_size: int, mixture: bool
) -> None:
    paths = [shards, more_shards] if mixture else shards
    weights = [1, 2] if mixture else None
    whole, latents, _ = stream(paths, 1, 24, weights=weights)
    keys, same, _ = stream(paths, world_size, 24 // world_size, weights=weights)
    assert keys == whole
    assert torch.equal(latents, same)


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_turns_of_ranks_and_workers_make_up_the_stream(
    shards: Path, world_size: int, workers: int
) -> None:
    whole, latents, start = stream(shards, 1, 1)
    keys, same = by_workers(shards, world_size, workers, {**start, "epoch": 0, "position": 0})
    assert len(keys) == 100 // world_size * world_size
    assert keys == whole[: len(keys)]
    assert torch.equal(same, latents[: len(keys)])


@pytest.mark.parametrize("before", WORLDS)
@pytest.mark.parametrize("mixture", [False, True])
def test_saved_at_every_tenth_and_restored_into_another_world(
    shards: Path, more_shards: Path, before: int, mixture: bool
) -> None:
    """Whatever the world and its workers were and are: the same keys and latents go on, each position once."""
    paths = [shards, more_shards] if mixture else shards
    options = {"drop_last": False, "weights": [1, 2] if mixture else None}
    whole, latents, _ = stream(paths, 1, 1, **options)
    size = len(whole)
    assert mixture or len(set(whole)) == size == 100
    batch_size, others = 10 // before or 1, [world for world in WORLDS if world != before]
    for tenth in range(11):
        after, workers = others[tenth % 4], (tenth + tenth // 4) % 4
        batches = tenth * size // 10 // (before * batch_size)
        first, first_latents, state = stream(paths, before, batch_size, batches=batches, **options)
        rest, rest_latents = by_workers(paths, after, workers or 1, state, **options)
        if state["epoch"]:  # the last batch was had: the next epoch goes on
            assert first[:size] == whole and len(rest) >= size
            continue
        if not workers:
            again, again_latents, _ = stream(paths, after, 1, state, **options)
            assert again == rest and torch.equal(again_latents, rest_latents)
        padding = len(first + rest) - size  # of the last batch, from the beginning
        assert 0 <= padding < max(after, before * batch_size)
        assert first + rest == whole + whole[:padding]
        assert torch.equal(torch.cat([first_latents, rest_latents])[:size], latents)


def test_partitions_keep_the_epoch_exact_when_the_world_changes(shards: Path) -> None:
    first, _, state = stream(shards, 4, 3, batches=4, partitions=2)
    rest, _, _ = stream(shards, 2, 1, json.loads(json.dumps(state)), partitions=2)
    assert len(first) == 48 and len(set(first + rest)) == len(first + rest) == 100


def test_state_is_a_few_integers_that_json_keeps(shards: Path) -> None:
    loader = make_loader(shards, 10, **OPTIONS)
    next(iter(loader))
    state = loader.state_dict()
    assert state["epoch"] == 0 and state["position"] == 10
    assert all(type(value) is int and value.bit_length() < 64 for value in state.values())
    assert json.loads(json.dumps(state)) == state


def test_state_counts_what_the_trainer_had_not_what_is_ready(shards: Path) -> None:
    loader = make_loader(shards, 10, prefetch=8, **OPTIONS)
    for steps, _ in enumerate(loader, 1):
        assert loader.state_dict()["position"] == 10 * steps
        if steps == 3:
            break
    again = make_loader(shards, 10, **OPTIONS)
    again.load_state_dict(loader.state_dict())
    assert [b["key"] for b in again] == [b["key"] for b in loader]


def test_iterating_again_goes_on_and_then_to_the_next_epoch(shards: Path) -> None:
    loader = make_loader(shards, 10, **OPTIONS)
    first = [key for batch in itertools.islice(loader, 4) for key in batch["key"]]
    first += [key for batch in loader for key in batch["key"]]
    second = [key for batch in loader for key in batch["key"]]
    assert len(loader) == 10 and len(first) == 100
    assert sorted(first) == sorted(second) and first != second
    assert loader.state_dict()["epoch"] == 2


def test_a_state_of_the_last_batch_goes_on_with_the_next_epoch(shards: Path) -> None:
    loader = make_loader(shards, 10, **OPTIONS)
    for _ in loader:
        last = loader.state_dict()
    again = make_loader(shards, 10, **OPTIONS)
    again.load_state_dict(last)
    assert [b["key"] for b in again] == [b["key"] for b in loader]


def test_a_state_with_too_few_samples_left_for_a_batch_goes_on_with_the_next_epoch(shards: Path) -> None:
    loader = make_loader(shards, 9, **OPTIONS)
    state = [loader.state_dict() for _ in zip(range(10), loader, strict=False)][-1]
    again, next_epoch = make_loader(shards, 24, **OPTIONS), make_loader(shards, 24, **OPTIONS)
    again.load_state_dict(state)
    assert (state["epoch"], state["position"]) == (0, 90)
    assert (again.state_dict()["epoch"], again.state_dict()["position"]) == (1, 0)
    next_epoch.set_epoch(1)
    assert sorted(b["key"] for b in again) == sorted(b["key"] for b in next_epoch)
    for batches in (loader, again, next_epoch):
        batches.close()


def test_restoring_in_the_middle_of_a_loop_ends_it(shards: Path) -> None:
    loader = make_loader(shards, 10, **OPTIONS)
    start = loader.state_dict()
    seen = 0
    for _ in loader:
        seen += 1
        if seen == 3:
            loader.load_state_dict(start)
    assert seen == 3
    assert loader.state_dict() == start


@pytest.mark.parametrize(
    "change", [{"seed": 4}, {"shuffle_window": 16}, {"shuffle": False}, {"shards": "more"}]
)
def test_a_state_of_another_order_is_refused(shards: Path, more_shards: Path, change: dict[str, Any]) -> None:
    state = make_loader(shards, 10, **OPTIONS).state_dict()
    options = {**OPTIONS, **change}
    path = more_shards if options.pop("shards", None) else shards
    with pytest.raises(
        ValueError, match=r"of another order of samples; (seed|window|shards): \d+ there, \d+ here"
    ):
        make_loader(path, 10, **options).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": -1}, "epoch=-1 is none"),
        ({"position": "10"}, "position='10' is none"),
        ({"position": -10}, "position=-10 is none"),
        ({"stride": 0}, "stride=0 is none"),
        ({"stride": None}, "stride=None is none"),
    ],
)
def test_a_state_that_cannot_be_is_refused(shards: Path, change: dict[str, Any], message: str) -> None:
    loader = make_loader(shards, 10, **OPTIONS)
    before = loader.state_dict()
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict({**before, **change})
    with pytest.raises(ValueError, match="of another order of samples"):
        loader.load_state_dict({})
    assert loader.state_dict() == before


@pytest.mark.parametrize("drop_last", [True, False])
def test_every_rank_has_as_many_batches_as_len_says(shards: Path, drop_last: bool) -> None:
    for world_size in WORLDS:
        loaders = [
            make_loader(shards, 7, rank=rank, world_size=world_size, drop_last=drop_last, **OPTIONS)
            for rank in range(world_size)
        ]
        counts = {len(list(loader)) for loader in loaders}
        assert counts == {len(loaders[0])}
        assert counts == {100 // (7 * world_size) if drop_last else -(-100 // (7 * world_size))}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_worker_processes_give_the_same_stream(shards: Path, context: str) -> None:
    forking()  # from a server that has imported torch; what is spawned gets as much of the loader, and imports it anew
    expected = [
        (b["key"], b["image_latents"])
        for b in itertools.islice(endless(make_loader(shards, 10, **OPTIONS)), 23)
    ]
    for workers in (1, 3) if context == "fork" else (2,):
        loader = make_loader(shards, 10, num_workers=workers, multiprocessing_context=context, **OPTIONS)
        got = [(b["key"], b["image_latents"]) for b in itertools.islice(endless(loader), 23)]
        assert [key for key, _ in got] == [key for key, _ in expected]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(got, expected, strict=True))
        state = loader.state_dict()
        loader.close()
        assert state["epoch"] == 2 and state["position"] == 30
        other = make_loader(shards, 5, num_workers=0, rank=1, world_size=2, **OPTIONS)
        other.load_state_dict(state)
        loader.load_state_dict(state)
        assert next(iter(other))["key"] == next(iter(loader))["key"][5:]
        loader.close()


def endless(loader: Any) -> Any:
    while True:
        yield from loader


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_dataloader(shards: Path, workers: int) -> None:
    dataset = LatentDataset(shards, 10, **OPTIONS)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    assert len(loader) == 10
    expected = make_loader(shards, 10, **OPTIONS)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert [b["key"] for b in loader] == [b["key"] for b in expected]


def test_rank_and_world_size_come_from_the_environment(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    dataset = LatentDataset(shards, 5, **OPTIONS)
    assert (dataset.rank, dataset.world_size, len(dataset)) == (1, 4, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_thread_process_or_file_is_left_when_the_loader_is_dropped(shards: Path, workers: int) -> None:
    def left() -> tuple[int, int, int]:
        import multiprocessing

        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            len(multiprocessing.active_children()),
        )

    next(iter(make_loader(shards, 10, num_workers=workers, **OPTIONS)))  # what is made once for good
    gc.collect()
    before = left()
    for _ in range(3):
        loader = make_loader(shards, 10, num_workers=workers, **OPTIONS)
        iterator = iter(loader)
        batch = next(iterator)
        assert left()[1:] > before[1:]
        del loader, iterator, batch
        gc.collect()
        # A killed worker takes a moment.
        wait_until(lambda: all(now <= then for now, then in zip(left(), before, strict=True)), seconds=60)


def test_a_program_may_end_with_the_loader_still_open(shards: Path) -> None:
    code = f"from loader import make_loader\nbatches = make_loader({str(shards)!r}, 4, resolution=256, text_encoders=[''])\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "next(iter(batches))"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("batches_had", [0, 1, 3])
def test_a_state_of_another_world_in_a_loader_that_was_used(shards: Path, batches_had: int) -> None:
    def make(world_size: int, batch_size: int) -> Any:
        return make_loader(shards, batch_size, rank=0, world_size=world_size, partitions=2, **OPTIONS)

    other = make(4, 3)
    for _ in zip(range(4), other, strict=False):
        pass
    fresh, used = make(2, 1), make(2, 1)
    for _ in zip(range(batches_had), used, strict=False):
        pass
    state = other.state_dict()
    fresh.load_state_dict(state)
    used.load_state_dict(state)
    expected = [batch["key"] for batch in fresh]
    assert [batch["key"] for batch in used] == expected and expected
    for batches in (other, fresh, used):
        batches.close()
