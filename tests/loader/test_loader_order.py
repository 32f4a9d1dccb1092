"""The order is a pure function; these tests hold its properties, and one golden order."""

import math

import numpy as np
import pytest

from loader.counter_rng import keyed, normal, permute, uniform
from loader.order import ATTEMPTS, Order, bucketed, integer_weights

SIZES = np.array([20, 13, 0, 17, 25, 5, 20])


GOLDEN_SINGLE = [(0, 8), (0, 16), (0, 14), (6, 1), (0, 12), (0, 6)]
GOLDEN_MIXTURE = [(6, 1), (0, 4), (4, 8), (2, 3), (1, 2), (4, 13)]
GOLDEN_KEYS = [5886236958684341581, 7521888212171461645]
GOLDEN_PERMUTATION = [3, 5, 6, 1, 4, 0, 2]
GOLDEN_NORMAL = [-0.015319122932851315, -0.5210427045822144, 1.098507285118103]


def single(sizes: np.ndarray = SIZES, **options: int) -> Order:
    return Order(
        sizes, (np.arange(len(sizes)),), (1,), (int(sizes.sum()),), **{"seed": 0, "window": 32, **options}
    )


def mixture(weights: tuple[int, ...], **options: int) -> Order:
    sizes = np.array([10, 12, 8, 20, 20, 3, 4])
    groups = (np.arange(3), np.arange(3, 5), np.arange(5, 7))[: len(weights)]
    lengths = tuple(int(sizes[group].sum()) for group in groups)
    return Order(
        sizes[: groups[-1][-1] + 1], groups, weights, lengths, **{"seed": 0, "window": 16, **options}
    )


def places(order: Order, epoch: int, positions: np.ndarray, attempt: int = 0) -> list[tuple[int, int]]:
    found = order.locate(epoch, positions, attempt)
    return list(zip(found.shard.tolist(), found.row.tolist(), strict=True))


def everything(sizes: np.ndarray) -> set[tuple[int, int]]:
    return {(shard, row) for shard, size in enumerate(sizes.tolist()) for row in range(size)}


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("window", [1, 32, 10_000])
def test_each_epoch_is_a_permutation_of_the_samples(partitions: int, stride: int, window: int) -> None:
    order = single(partitions=partitions, stride=stride, window=window)
    epochs = [places(order, epoch, np.arange(100)) for epoch in (0, 1, 10**9)]
    assert all(set(epoch) == everything(SIZES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_place_of_a_position_does_not_depend_on_what_else_is_asked_for() -> None:
    order = single(partitions=2, stride=3)
    whole = places(order, 4, np.arange(100))
    backwards = [places(single(partitions=2, stride=3), 4, np.array([p]))[0] for p in range(99, -1, -1)]
    assert backwards[::-1] == whole


def test_without_shuffle_samples_come_as_they_lie() -> None:
    assert places(single(shuffle=False), 3, np.arange(100)) == sorted(everything(SIZES))


def test_positions_beyond_the_epoch_are_its_beginning() -> None:
    order = single()
    assert places(order, 2, np.arange(100, 110)) == places(order, 2, np.arange(10))


def test_golden_order() -> None:
    """Whoever changes this breaks the resumption of every run there is."""
    assert places(single(), 0, np.arange(6)) == GOLDEN_SINGLE
    assert places(mixture((5, 3, 1)), 1, np.arange(6)) == GOLDEN_MIXTURE
    assert keyed(1, np.array([2, 3])).tolist() == GOLDEN_KEYS
    assert permute(np.arange(7), 7, keyed(3)).tolist() == GOLDEN_PERMUTATION
    assert normal(keyed(0), 3)[0].tolist() == pytest.approx(GOLDEN_NORMAL)


def test_a_partition_reads_its_own_shards_only() -> None:
    sizes = np.full(40, 50)
    order = single(sizes, partitions=4, stride=8, window=100)
    turns = np.arange(1984).reshape(-1, 4, 8)  # 62 whole rounds; 16 samples are left over
    owners: dict[int, set[int]] = {}
    for node in range(4):
        for shard in np.unique(order.locate(0, turns[:, node].ravel()).shard).tolist():
            owners.setdefault(shard, set()).add(node)
    assert len(owners) == 40
    assert sum(len(nodes) > 1 for nodes in owners.values()) <= 3


@pytest.mark.parametrize("weights", [(1, 9), (5, 3, 1), (1, 1, 1), (1000, 1, 3)])
@pytest.mark.parametrize("partitions", [1, 2])
def test_a_mixture_keeps_its_weights_over_any_stretch(weights: tuple[int, ...], partitions: int) -> None:
    order = mixture(weights, partitions=partitions, stride=1)
    length = order.num_samples
    group_of_shard = np.repeat(np.arange(3), (3, 2, 2))
    stream = np.concatenate([order.locate(epoch, np.arange(length)).shard for epoch in range(60)])
    groups = group_of_shard[stream]
    for number, weight in enumerate(weights):
        counts = np.concatenate([[0], np.cumsum(groups == number)])
        for stretch in (1, 10, 333, length * 20):
            in_stretch = counts[stretch:] - counts[:-stretch]
            assert np.abs(in_stretch - stretch * weight / sum(weights)).max() <= 2 * partitions


def test_each_dataset_of_a_mixture_goes_through_epochs_of_its_own() -> None:
    order = mixture((5, 3, 1))
    length = order.num_samples
    stream = [place for epoch in range(9) for place in places(order, epoch, np.arange(length))]
    for group in order.groups:
        mine = [place for place in stream if place[0] in group]
        size = int(order.shards[group].sum())
        epochs = [mine[start : start + size] for start in range(0, len(mine) - size + 1, size)]
        assert len(epochs) >= 2
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_units_stay_together_in_one_group() -> None:
    sizes = np.array([10, 9, 21])
    order = Order(sizes, (np.arange(2), np.array([2])), (4, 5), (4, 5), seed=0, window=16, unit=4)
    shard = order.locate(0, np.arange(36)).shard.reshape(9, 4)
    of_second = shard == 2
    assert (of_second.all(1) | ~of_second.any(1)).all()
    assert of_second.all(1).sum() == 5


def test_buckets_too_small_for_a_batch_are_left_out_or_padded() -> None:
    sizes, names = np.array([20, 2, 3, 0]), ["a", "b", "c", ""]  # the last of rejected rows only
    options = {"seed": 0, "shuffle": True, "window": 16, "partitions": 1}
    kept = bucketed(sizes, names, 4, True, **options)
    assert set(places(kept, 0, np.arange(kept.num_samples))) == {(0, row) for row in range(20)}
    padded = bucketed(sizes, names, 4, False, **options)
    assert padded.num_samples == 28
    assert set(places(padded, 0, np.arange(28))) == everything(sizes)
    assert bucketed(sizes, names, 32, True, **options).num_samples == 0


@pytest.mark.parametrize(("window", "low", "high"), [(16384, 0.2, 0.3), (65536, 0.04, 0.08)])
def test_neighbours_correlate_as_the_docstring_says(window: int, low: float, high: float) -> None:
    sizes = np.full(400, 4096)
    found = single(sizes, window=window).locate(0, np.arange(int(sizes.sum())))
    source = found.shard * 4096 + found.row
    assert low < np.corrcoef(source[:-1], source[1:])[0, 1] < high


def test_a_substitute_is_another_sample_and_always_the_same() -> None:
    order = single()
    positions = np.arange(100)
    first = places(order, 0, positions)
    for attempt in range(1, ATTEMPTS + 1):
        other = places(order, 0, positions, attempt)
        assert other == places(single(), 0, positions, attempt)
        assert all(a != b for a, b in zip(first, other, strict=True))
        assert set(other) <= everything(SIZES)


def test_a_substitute_is_looked_for_nearby_and_then_everywhere() -> None:
    """It lies in the same window, hence in a shard that is open, as long as there is hope; then in any."""
    order = single(np.full(4, 50), window=25, shuffle=False)
    positions = np.arange(200)
    for attempt in range(1, ATTEMPTS + 1):
        found = order.locate(0, positions, attempt)
        nearby = (found.shard * 50 + found.row) // 25 == positions // 25
        assert nearby.all() if attempt <= ATTEMPTS // 2 else nearby.mean() < 0.4, attempt


def test_neighbours_of_the_source_are_far_apart() -> None:
    """Documented quality: with a window of W samples, consecutive samples are W/3 apart on average, and uncorrelated in it."""
    sizes = np.full(64, 256)
    order = single(sizes, window=4096)
    found = order.locate(0, np.arange(int(sizes.sum())))
    source = found.shard * 256 + found.row
    steps = np.abs(np.diff(source))
    assert np.median(steps) > 1000
    inside = source.reshape(4, 4096)
    for window in inside:
        ranks = np.argsort(np.argsort(window))
        assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 4 / np.sqrt(4096)
        assert abs(np.corrcoef(ranks, np.arange(4096))[0, 1]) < 4 / np.sqrt(4096)


def test_weights_become_the_smallest_integers() -> None:
    assert integer_weights([0.1, 0.9]) == (1, 9)
    assert integer_weights([2, 4, 6]) == (1, 2, 3)
    assert integer_weights([1e-3, 1]) == (1, 1000)


@pytest.mark.parametrize("weights", [[0, 1], [-1, 2], [1e-12, 1], [float("nan"), 1], [float("inf"), 1]])
def test_unusable_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights="):
        integer_weights(weights)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100, 4099])
def test_permute_is_a_bijection(size: int) -> None:
    for key in range(5):
        assert sorted(permute(np.arange(size), size, keyed(key)).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_permutations_are_reached_evenly(size: int) -> None:
    """50 draws per permutation; the chi-squared statistic stays near its degrees of freedom."""
    cells = math.factorial(size)
    keys = keyed(5, np.arange(50 * cells))
    table = np.stack([permute(np.full(len(keys), i), size, keys) for i in range(size)])
    counts = np.unique(size ** np.arange(size) @ table, return_counts=True)[1]
    assert len(counts) == cells
    assert ((counts - 50) ** 2 / 50).sum() < 10 + 2 * (cells - 1)


def test_deviates_are_normal_and_independent() -> None:
    values = normal(keyed(1, np.arange(128)), 4096)
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 3) < 0.06
    rows = np.corrcoef(values[:32])
    assert np.abs(rows - np.eye(32)).max() < 6 / np.sqrt(4096)
    assert np.array_equal(normal(keyed(1, np.array([77])), 100)[0], values[77, :100])


def test_uniform_covers_the_unit_interval() -> None:
    values = uniform(keyed(2, np.arange(10_000)))
    assert 0 <= values.min() < 0.001 < 0.999 < values.max() < 1
    assert abs(values.mean() - 0.5) < 0.01
