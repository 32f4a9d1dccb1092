"""What torch users reach for on a DataLoader, validation loaders, and the counts of workers."""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from loader import LatentDataset, make_loader
from loader.options import Options, Settings

OPTIONS: dict[str, Any] = {"resolution": 256, "text_encoders": [""], "extras": ["key"], "seed": 3}


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_stats_count_every_sample_once(shards: Path, workers: int) -> None:
    batches = make_loader(shards, 10, num_workers=workers, **{**OPTIONS, "extras": [], "flip_prob": 0})
    samples = sum(len(batch["image_latents"]) for batch in batches)
    stats = batches.stats()
    batches.close()
    assert stats["samples"] == samples == 100 and stats["substitutes"] == 0
    header = 128
    assert stats["bytes"] == 100 * (2 * header + 2 * 8 * 16 + 2 * 4 * 6)
    assert stats["mixture"] == {str(shards): 1.0}


def test_a_loader_has_what_scripts_print(shards: Path) -> None:
    batches = make_loader(shards, 8, rank=1, world_size=2, drop_last=False, **OPTIONS)
    assert (batches.batch_size, batches.drop_last, len(batches)) == (8, False, 7)
    assert len(batches.dataset) == 100  # samples, of all ranks
    first = next(iter(batches))
    batches.set_epoch(0)
    for index in range(8):
        sample = batches.dataset[8 + index]  # rank 1's first batch
        assert sample["key"] == first["key"][index]
        assert torch.equal(sample["image_latents"], first["image_latents"][index])
    with pytest.raises(IndexError, match="position 100 of 100"):
        batches.dataset[100]
    assert len(list(DataLoader(batches.dataset, batch_size=4))) == 25


def test_set_epoch_goes_to_the_beginning_of_another_epoch(shards: Path) -> None:
    expected = make_loader(shards, 10, **OPTIONS)
    epochs = [keys(expected) for _ in range(3)]
    batches = make_loader(shards, 10, **OPTIONS)
    next(iter(batches))
    batches.set_epoch(2)
    assert keys(batches) == epochs[2]
    batches.set_epoch(1)
    assert keys(batches) == epochs[1]
    batches.set_epoch(2)  # where it is: trainers say so before each epoch
    assert keys(batches) == epochs[2]


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("how", [copy.deepcopy, pickled])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_in_use_can_be_copied_and_goes_on_from_there(shards: Path, how: Any, workers: int) -> None:
    batches = make_loader(shards, 10, num_workers=workers, **OPTIONS)
    list(itertools.islice(batches, 3))
    other = how(batches)
    assert keys(other) == keys(batches) and len(how(batches.dataset)) == 100
    batches.close()
    other.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_persistent_workers_and_a_break_give_whole_epochs(shards: Path, workers: int) -> None:
    """A break ends the epoch: what the workers had read ahead, nobody had."""
    batches = DataLoader(
        LatentDataset(shards, 10, **OPTIONS), batch_size=None, num_workers=workers, persistent_workers=True
    )
    expected = make_loader(shards, 10, **OPTIONS)
    epochs = [keys(expected) for _ in range(4)]
    for epoch, taken in enumerate((3, 10, 1, 10)):
        assert keys(itertools.islice(batches, taken)) == epochs[epoch][: 10 * taken]


MAKERS: dict[str, Any] = {
    "make_loader": make_loader,
    "workers": lambda *a, **o: make_loader(*a, num_workers=2, **o),
    "LatentDataset": LatentDataset,
    "DataLoader": lambda *a, **o: DataLoader(
        LatentDataset(*a, **o), batch_size=None, num_workers=1, persistent_workers=True
    ),
}


@pytest.mark.parametrize("make", MAKERS)
def test_validation_sees_the_same_batches_each_time(shards: Path, make: str) -> None:
    batches = MAKERS[make](shards, 10, from_start=True, caption_drop_prob=0.2, **OPTIONS)
    whole = list(batches)
    assert len(set(keys(whole))) == 100
    for taken in (3, 10, 1, 10):
        again = list(itertools.islice(batches, taken))
        assert keys(again) == keys(whole)[: 10 * taken]
        for one, other in zip(again, whole, strict=False):  # the noise and the dropped captions as well
            assert torch.equal(one["image_latents"], other["image_latents"])
            assert torch.equal(one["drop_caption_mask"], other["drop_caption_mask"])


@pytest.mark.parametrize("world_size", [1, 3])
def test_padding_is_marked(shards: Path, world_size: int) -> None:
    """What is not marked, of all ranks, is the epoch, each key once."""
    real, padded = [], 0
    for rank in range(world_size):
        for batch in make_loader(shards, 7, drop_last=False, rank=rank, world_size=world_size, **OPTIONS):
            mask = batch["sample_mask"]
            assert mask.shape == (7,) and mask.dtype == torch.bool
            real += [key for key, is_real in zip(batch["key"], mask.tolist(), strict=True) if is_real]
            padded += int((~mask).sum())
    assert len(real) == len(set(real)) == 100
    assert padded == -100 % (7 * world_size)
    assert "sample_mask" not in next(iter(make_loader(shards, 7, **OPTIONS)))


def test_options_are_visible_and_have_defaults(shards: Path) -> None:
    """What an editor completes, and what there is, are the same names."""
    settings = {name for name, field in Settings.__dataclass_fields__.items() if field.init}
    assert set(Options.__annotations__) == settings - {"batch_size"}
    heads = [
        line.partition(":")[0] for line in (Options.__doc__ or "").splitlines() if line.startswith("    ")
    ]
    assert settings - {"batch_size"} <= {name for head in heads for name in head.strip().split(", ")}
    with pytest.raises(TypeError, match="flip is no option of a loader; did you mean flip_prob"):
        make_loader(shards, 10, flip=0.5)  # type: ignore[call-arg]


def test_a_copy_has_a_place_of_its_own(shards: Path) -> None:
    dataset = LatentDataset(shards, 10, **OPTIONS)
    dataset.epoch = 3
    other = copy.copy(dataset)
    other.set_epoch(7)
    next(iter(other))
    assert (dataset.epoch, dataset.position) == (3, 0) and (other.epoch, other.position) == (7, 10)
