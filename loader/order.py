"""The order of samples as pure functions of (shards, seed, epoch, position). O(shards) memory, no buffer, no state.

A position of an epoch becomes a sample in five steps, each of them arithmetic:

1. deal    the epoch is cut into `partitions`, and `stride` positions in turn go to each: a node that takes the same turn
           of every step reads one partition, hence its share of the shards and no more
2. mix     a position of a partition belongs to one of the groups (datasets of a mixture, or buckets), by their weights
3. wrap    each group runs through epochs of its own: the same samples in another order
4. shuffle the shards of a group are permuted, laid end to end, cut into windows of `window` samples; each window is permuted
5. look up what then lies at that place: shard and row

Positions may go beyond the epoch: they wrap into its beginning, which is how a last batch is padded.

How well that shuffles: inside of a window neighbours are independent. With shards of 4,096 samples, a window of 16,384 puts
four shards into every batch, and the source positions of neighbours correlate by 0.26; one of 65,536 sixteen, by 0.06
(about one over the shards of a window). A window that is not several shards long does little for shards that are sorted.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.counter_rng import keyed, permute
from loader.proportions import Partitioning, cut_into_parts, integer_weights, mix_in, weights_by_path

log = logging.getLogger("loader")

I64 = npt.NDArray[np.int64]
SHARDS, WINDOWS, DETOURS = 1, 2, 3  # what a hash is for
ATTEMPTS = 8  # places to look for a readable sample; the first half of them in the same window


@dataclass(frozen=True)
class Places:
    """Says where the samples at some positions lie: number of the shard, and of the row among its samples."""

    shard: I64
    row: I64

    def by_shard(self) -> Iterator[tuple[int, I64]]:
        """(number of a shard, which positions lie there, in the order of its rows), shard by shard."""
        by_place = np.lexsort((self.row, self.shard))
        bounds = np.flatnonzero(np.diff(self.shard[by_place])) + 1
        for part in np.split(by_place, bounds):
            yield int(self.shard[part[0]]), part


@dataclass(frozen=True)
class Order:
    """shards: samples of each shard. groups: the shards of each group, by number; one group if not a mixture.

    weights: integers, one per group: how many positions of `sum(weights)` belong to it.
    unit: positions that stay together in one group: 1, or the batch size where groups are buckets.
    lengths: positions of an epoch of each group, in units.
    """

    shards: I64
    groups: tuple[I64, ...]
    weights: tuple[int, ...]
    lengths: tuple[int, ...]
    seed: int
    shuffle: bool = True
    window: int = 16384
    partitions: int = 1
    stride: int = 1
    unit: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "_epochs", OrderedDict())
        parts = cut_into_parts(
            self.shards, self.groups, self.weights, self.lengths, self.unit, self.partitions
        )
        object.__setattr__(self, "_parts", parts)

    @property
    def num_samples(self) -> int:
        """Positions of one epoch."""
        return sum(self.lengths) * self.unit

    def locate(self, epoch: int, positions: I64, attempt: int = 0) -> Places:
        """The samples at `positions` of `epoch`; with `attempt` > 0, a substitute for each, the same at every call."""
        shard, row = np.empty_like(positions), np.empty_like(positions)
        for group, partition, group_epoch, turn, at in self._turns(epoch, positions):
            place = self._place(group, group_epoch, partition, turn, attempt)
            shard[at], row[at] = self._look_up(group, group_epoch, place)
        return Places(shard, row)

    def is_padding(self, epoch: int, positions: I64) -> npt.NDArray[np.bool_]:
        """True where a position only fills up a batch: the sample there is another position's as well."""
        padding = positions >= self.num_samples
        for group, partition, _, turn, at in self._turns(epoch, positions):
            padding[at] |= turn >= np.diff(vars(self)["_parts"].bounds[group])[partition]
        return padding

    def _turns(self, epoch: int, positions: I64) -> Iterator[tuple[int, I64, int, I64, I64]]:
        """(group, partition, epoch of the group, turn in samples, which positions) of the positions, group by group."""
        unit, offset = np.divmod(positions % self.num_samples, self.unit)
        partition, index = self._deal(unit)
        parts: Partitioning = vars(self)["_parts"]
        index += epoch * parts.totals[partition]
        group = np.empty_like(index)
        for one in np.unique(partition) if self.partitions > 1 else [0]:
            at = np.flatnonzero(partition == one) if self.partitions > 1 else slice(None)
            group[at], index[at] = mix_in(index[at], parts.weights[one])
        for number in np.unique(group):
            mine = group == number
            group_epoch, turn = np.divmod(index[mine], parts.units[number][partition[mine]])
            for now in np.unique(group_epoch):
                at = np.flatnonzero(mine)[group_epoch == now]
                turns = turn[group_epoch == now] * self.unit + offset[at]
                yield int(number), partition[at], int(now), turns, at

    def _deal(self, unit: I64) -> tuple[I64, I64]:
        """(partition, index in it). Full rounds first; then what is left of each partition, one after another."""
        totals, parts, stride = vars(self)["_parts"].totals, self.partitions, self.stride
        rounds = int(totals.min()) // stride
        turn, inside = np.divmod(unit, stride)
        partition, index = turn % parts, turn // parts * stride + inside
        rest = totals - rounds * stride
        ends = rounds * stride * parts + np.cumsum(rest)
        tail = unit >= rounds * stride * parts
        last = np.searchsorted(ends, unit[tail], side="right")
        partition[tail] = last
        index[tail] = unit[tail] - (ends - rest)[last] + rounds * stride
        return partition, index

    def _place(self, group: int, epoch: int, partition: I64, turn: I64, attempt: int) -> I64:
        """Place of a turn in the group's shards laid end to end: turns are permuted inside of their window.

        A substitute takes the place of another turn, of the same window as long as there is hope.
        """
        bounds = vars(self)["_parts"].bounds[group]
        first = bounds[partition]
        size = bounds[partition + 1] - first
        turn = turn % size
        window, start, length = self._window(turn, size)
        if attempt:
            if attempt > ATTEMPTS // 2:
                start, length = np.zeros_like(start), size
            detour = keyed(self.seed, DETOURS, group, epoch, first + turn, attempt)
            step = 1 + (detour % np.maximum(length - 1, 1).astype(np.uint64)).astype(np.int64)
            turn = start + (turn - start + step) % length
            window, start, length = self._window(turn, size)
        if self.shuffle:
            key = keyed(self.seed, WINDOWS, group, epoch, partition, window)
            turn = start + permute(turn - start, length, key)
        return first + turn

    def _window(self, turn: I64, size: I64) -> tuple[I64, I64, I64]:
        """(number, start, length) of the window of a turn: `size` turns are cut as evenly as can be."""
        windows = -(-size // self.window)
        window = ((turn + 1) * windows - 1) // size
        start = window * size // windows
        return window, start, (window + 1) * size // windows - start

    def _look_up(self, group: int, epoch: int, place: I64) -> tuple[I64, I64]:
        """(shard, row) of places in the group's shards, permuted for the epoch and laid end to end."""
        shards, ends = self._shards(group, epoch)
        at = np.searchsorted(ends, place, side="right")
        shard = shards[at]
        return shard, place - ends[at] + self.shards[shard]

    def _shards(self, group: int, epoch: int) -> tuple[I64, I64]:
        """The group's shards in the order of an epoch, and where each ends. Kept for the epochs in use."""
        cache: OrderedDict[tuple[int, int], tuple[I64, I64]] = vars(self)["_epochs"]
        known = cache.get((group, epoch))
        if known is None:
            shards = self.groups[group]
            if self.shuffle:
                turn = np.arange(len(shards))
                shards = shards[permute(turn, len(shards), keyed(self.seed, SHARDS, group, epoch))]
            known = cache[group, epoch] = shards, np.cumsum(self.shards[shards])
            while len(cache) > 3 * len(self.groups):
                cache.popitem(last=False)
        return known


def mixture(counts: Sequence[I64], weights: Sequence[float] | None, **options: Any) -> Order:
    """The order of one or several datasets, given the samples of each one's shards; weighted, or all of each once."""
    ends = np.cumsum([len(count) for count in counts])
    groups = tuple(np.arange(end - len(count), end) for end, count in zip(ends, counts, strict=True))
    lengths = tuple(int(count.sum()) for count in counts)
    if weights is not None and len(weights) != len(counts):
        raise ValueError(f"weights={list(weights)!r}: {len(counts)} paths need as many weights")
    if weights is None or len(counts) == 1:
        return Order(np.concatenate(counts), (np.concatenate(groups),), (1,), (sum(lengths),), **options)
    if 0 in lengths:
        raise ValueError(f"weights={list(weights)!r}: path number {lengths.index(0)} has no samples")
    if min(lengths) < options["partitions"]:
        raise ValueError(
            f"partitions={options['partitions']}: path number {lengths.index(min(lengths))} has {min(lengths)} samples"
        )
    return Order(np.concatenate(counts), groups, integer_weights(weights), lengths, **options)


def bucketed(
    counts: I64,
    buckets: Sequence[str],
    batch_size: int,
    drop_last: bool,
    *,
    paths: Sequence[int] = (),
    weights: Sequence[float] | None = None,
    **options: Any,
) -> Order:
    """The order of shards of several image shapes: every batch is of one bucket, and all buckets are spread over the epoch.

    What does not fill the last batch of a bucket is left out of the epoch, or padded from the bucket's beginning.
    paths: number of the path of each shard. With `weights`, one for each path, a batch is of one path as well.
    """
    names = np.array(buckets)
    if (counts[names == ""] > 0).any():
        raise ValueError(
            "the images are of several shapes, and the manifest does not say which shard is of which bucket"
        )
    shares = weights if weights is not None and len(weights) > 1 else None
    mixed = shares is not None
    path = np.array(paths) if mixed else np.zeros(len(counts), np.int64)
    kinds = sorted({(int(p), str(n)) for p, n in zip(path, names, strict=True)})
    groups = [np.flatnonzero((path == p) & (names == n)) for p, n in kinds]
    sizes = [int(counts[group].sum()) for group in groups]
    batches = [size // batch_size if drop_last else -(-size // batch_size) for size in sizes]
    for (_, name), size, number in zip(kinds, sizes, batches, strict=True):
        if size and not number:
            log.warning(
                "bucket %s holds %d samples, which never fill a batch of %d and are not read; lower batch_size, or give "
                "drop_last=False",
                *(name, size, batch_size),
            )
    kept = [index for index, number in enumerate(batches) if number]
    lengths = tuple(batches[index] for index in kept)
    mixing = weights_by_path([kinds[index][0] for index in kept], lengths, shares) if shares else lengths
    smallest = min(lengths, default=0) if mixed else sum(lengths)
    if lengths and smallest < options["partitions"]:
        raise ValueError(
            f"partitions={options['partitions']}: {smallest} batches of {'a bucket' if mixed else 'all buckets'} "
            "are too few for them"
        )
    return Order(counts, tuple(groups[index] for index in kept), mixing, lengths, unit=batch_size, **options)
