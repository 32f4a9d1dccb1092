"""Each way in which a trainer goes over a loader gives whole epochs, one after the other."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from loader import LatentDataset, make_loader

OPTIONS: dict[str, Any] = {"resolution": 256, "text_encoders": [""], "extras": ["key"], "seed": 3}
EPOCHS = 4


def count_to_its_length(batches: Any) -> Iterator[Any]:
    """Never asks for one more than there are, as Lightning and transformers' Trainer do."""
    iterator = iter(batches)
    for _ in range(len(batches)):
        yield next(iterator)


def break_at_its_length(batches: Any) -> Iterator[Any]:
    for number, batch in enumerate(batches, start=1):
        yield batch
        if number == len(batches):
            break


LOOPS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "for": lambda batches: batches,
    "count": count_to_its_length,
    "break": break_at_its_length,
    "islice": lambda batches: itertools.islice(batches, len(batches)),
    "zip": lambda batches: (batch for _, batch in zip(range(len(batches)), batches, strict=False)),
    "zip, the loader first": lambda batches: (batch for batch, _ in zip(batches, range(len(batches)), strict=False)),
}  # fmt: skip
MAKERS: dict[str, Callable[..., Any]] = {
    "make_loader": make_loader,
    "LatentDataset": LatentDataset,
    "DataLoader": lambda *a, **o: DataLoader(LatentDataset(*a, **o), batch_size=None),
}


def keys(batches: Iterable[Any]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", MAKERS)
def test_every_epoch_is_whole(shards: Path, make: str, loop: str) -> None:
    batches = MAKERS[make](shards, 10, **OPTIONS)
    epochs = [keys(LOOPS[loop](batches)) for _ in range(EPOCHS)]
    assert [len(set(epoch)) for epoch in epochs] == [100] * EPOCHS
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS


def test_every_epoch_is_whole_with_workers(shards: Path) -> None:
    batches = make_loader(shards, 10, num_workers=2, **OPTIONS)
    assert [len(set(keys(count_to_its_length(batches)))) for _ in range(EPOCHS)] == [100] * EPOCHS


@pytest.mark.parametrize("make", ["make_loader", "LatentDataset"])
def test_a_state_taken_behind_the_last_batch_goes_on_with_the_next_epoch(shards: Path, make: str) -> None:
    expected = MAKERS[make](shards, 10, **OPTIONS)
    epochs = [keys(expected) for _ in range(2)]
    stopped = MAKERS[make](shards, 10, **OPTIONS)
    assert keys(count_to_its_length(stopped)) == epochs[0]
    resumed = MAKERS[make](shards, 10, **OPTIONS)
    resumed.load_state_dict(stopped.state_dict())
    assert keys(resumed) == epochs[1]
