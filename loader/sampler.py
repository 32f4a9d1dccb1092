"""Which positions the batches of this rank have, epoch after epoch, and the state that says how far it got.

Batches are cut from one global stream of samples (order.py) and dealt to ranks and workers, so the stream depends on neither.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
from torch.utils.data import get_worker_info

from loader.assembly import stride_of
from loader.options import Settings
from loader.order import I64, Order
from loader.ranks import Rank, RankFinder
from loader.state import ShardSet, State, check_state, hash_of

log = logging.getLogger("loader")

Turn = tuple[int, I64]


class StatefulSampler:
    """Deals the positions of an order to ranks, batch by batch, without end.

    order: of all samples; with the stride of the state that was loaded. epoch, position: where the next batch begins.
    rank: of this process; asked again whenever iteration begins.
    weights: integers that a mixture keeps to, for the state.

    Raises ValueError where the samples do not fill a batch on each rank.
    """

    def __init__(
        self, settings: Settings, order: Order, shards: ShardSet, weights: tuple[int, ...], rank: RankFinder
    ) -> None:
        self._settings, self._shards, self._weights = settings, shards, weights
        self.batch_size, self.order, self.rank = settings.batch_size, order, rank
        self.epoch = self.position = 0
        self._restored = False
        self._check_rank(rank.adopted)

    # --- ranks

    def adopt_rank(self) -> bool:
        """Look which rank this process is now; iteration begins with it. True if it is another than before.

        Raises ValueError where the rank is not known, or the samples do not fill a batch on each.
        """
        rank, before = self.rank.find(), self.rank.adopted
        _ = rank.known
        if (rank.number, rank.world_size) == (before.number, before.world_size):
            return False
        self._check_rank(rank)
        log.info("rank %s of %d now (%s)", rank.number, rank.world_size, rank.told_by)
        self.rank.adopt(rank)
        if not self._restored and self.epoch == self.position == 0:
            self._use_stride(stride_of(self._settings, self.order.unit, rank.world_size))
        return True

    def _check_rank(self, rank: Rank) -> None:
        partitions, size = self._settings.partitions, rank.world_size
        if size % partitions:
            raise ValueError(
                f"partitions={partitions} does not divide the world size, {size} ({rank.told_by}); give as many as nodes, "
                "and make the loader after torch.distributed is initialised"
            )
        if not self._batches(0, size):
            raise ValueError(
                f"batch_size={self.batch_size} on {size} ranks: {int(self.order.shards.sum())} samples do not "
                "fill one batch each; lower it, or give drop_last=False"
            )

    # --- length and position

    @property
    def num_samples(self) -> int:
        """Positions of an epoch: all samples of all paths."""
        return self.order.num_samples

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.rank.adopted.world_size

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self._batches(0, self.rank.find().world_size)

    def batches_left(self, position: int) -> int:
        return self._batches(position, self.rank.adopted.world_size)

    def _batches(self, position: int, world_size: int) -> int:
        left, size = max(0, self.num_samples - position), self.batch_size * world_size
        return left // size if self._settings.drop_last else -(-left // size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`, unless it is the present one."""
        if epoch != self.epoch:
            self.go_to(epoch, 0)

    def go_to(self, epoch: int, position: int) -> None:
        """Let the next batch begin there."""
        self.epoch, self.position = epoch, position

    def state_dict(self) -> State:
        """Say where the next batch begins, and the identity of the order; the same on every rank."""
        return {
            "epoch": self.epoch, "position": self.position, "stride": self.order.stride, **self._identity(),
            **self._shards.state(),
        }  # fmt: skip

    def _identity(self) -> State:
        """What decides the order beside the shards."""
        order = self.order
        return {
            "seed": order.seed,
            "window": order.window * order.shuffle,
            "partitions": order.partitions,
            "unit": order.unit,
            "weights": hash_of(self._weights),
        }

    def load_state_dict(self, state: State, shards: Literal["same", "added"] = "same") -> None:
        """Go on where `state` was taken; see `LatentDataset.load_state_dict`."""
        added = check_state(state, self._identity(), self._shards, shards)
        self.go_to(state["epoch"], state["position"])
        if self.position and (added or (get_worker_info() is None and not self.batches_left(self.position))):
            self.go_to(self.epoch + 1, 0)
        self._restored = True
        self._use_stride(state["stride"])

    def _use_stride(self, stride: int) -> None:
        if stride != self.order.stride:
            self.order = replace(self.order, stride=stride)

    # --- iteration

    def begin(self) -> bool:
        """What comes before each `for`: the rank, and with from_start the beginning. True if what is ready is of no use now."""
        changed = self.adopt_rank()
        if self._settings.from_start and self.position:
            self.position, changed = 0, True
        return changed

    def step_over_batch(self) -> None:
        """Count one batch as handed out. The last one of an epoch ends it at once: whoever counts asks for no more."""
        self.position += self.global_batch_size
        if not self.batches_left(self.position):
            self.end_epoch()

    def end_epoch(self) -> None:
        """Go to the beginning of the next one; with from_start, of the same."""
        self.go_to(self._after(self.epoch), 0)

    def _after(self, epoch: int) -> int:
        return epoch if self._settings.from_start else epoch + 1

    def turns(self, first: int = 0, step: int = 1) -> Iterator[Turn]:
        """(epoch, positions) of the batches number first, first + step, ... of this rank, from here on without end."""
        epoch, start, number, rank = self.epoch, self.position, first, self.rank.adopted.known
        while True:
            while number >= (batches := self.batches_left(start)):
                epoch, start, number = self._after(epoch), 0, number - batches
            position = start + number * self.global_batch_size + rank * self.batch_size
            yield epoch, np.arange(position, position + self.batch_size, dtype=np.int64)
            number += step
