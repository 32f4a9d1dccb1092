"""What a DataLoader has beside batches: its samples, one by one, and the positions that make a batch.

`accelerator.skip_first_batches` and trainers that resume build a DataLoader of their own from these two. A batch that it
asks for comes from the loader, as it is, so that nothing is read to be skipped.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from loader.batch import Batch
from loader.dataset import LatentDataset
from loader.sampler import StatefulSampler


class BatchPositions(list[int]):
    """The positions of one batch of this rank, in an epoch. begin: where the batch begins on all ranks together."""

    def __init__(self, positions: range, begin: int) -> None:
        super().__init__(positions)
        self.begin = begin


class BatchSampler(Sampler[list[int]]):
    """Each batch of this rank as the positions of its samples in the epoch."""

    def __init__(self, sampler: StatefulSampler, set_epoch: Callable[[int], None]) -> None:
        self._sampler = sampler
        self.set_epoch = set_epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[int]]:
        sampler = self._sampler
        sampler.adopt_rank()
        rank, size = sampler.rank.adopted.known, sampler.batch_size
        for begin in range(0, len(sampler) * sampler.global_batch_size, sampler.global_batch_size):
            yield BatchPositions(range(begin + rank * size, begin + (rank + 1) * size), begin)


class Samples(Dataset[Batch]):
    """Every sample of the present epoch by its position: `samples[0]` is a batch of one, without the first axis."""

    def __init__(
        self, dataset: LatentDataset, take: Callable[[int], Batch], set_epoch: Callable[[int], None]
    ) -> None:
        self._dataset, self._take = dataset, take
        self.set_epoch = set_epoch

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, position: int) -> dict[str, Any]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} samples")
        batch, _ = self._dataset.reader.read(self.epoch, np.array([position % len(self)], np.int64))
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, positions: list[int]) -> Any:
        """What torch's DataLoader asks for: a batch where a BatchSampler of ours says which, else a list of samples."""
        if isinstance(positions, BatchPositions) and not torch.utils.data.get_worker_info():
            return self._take(positions.begin)
        return [self[position] for position in positions]

    @property
    def num_samples(self) -> int:
        return self._dataset.num_samples

    @property
    def urls(self) -> list[str]:
        """The paths; hf:// ones have the commit that they are pinned to."""
        return self._dataset.urls

    @property
    def epoch(self) -> int:
        return self._dataset.epoch

    @property
    def position(self) -> int:
        return self._dataset.position

    @property
    def rank(self) -> int:
        return self._dataset.rank

    @property
    def world_size(self) -> int:
        return self._dataset.world_size
