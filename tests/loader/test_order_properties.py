"""Properties of the order that hold for any shards, weights, windows, partitions and worlds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader.counter_rng import keyed, permute
from loader.order import Order, bucketed, mixture
from loader.proportions import integer_weights

counts = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 4)
options = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31 - 1),
        "shuffle": st.booleans(),
        "window": st.integers(1, 40),
        "partitions": st.integers(1, 4),
        "stride": st.integers(1, 5),
    }
)


def places(order: Order, epoch: int, positions: range) -> list[tuple[int, int]]:
    found = order.locate(epoch, np.arange(positions.start, positions.stop, dtype=np.int64))
    return list(zip(found.shard.tolist(), found.row.tolist(), strict=True))


@given(counts, options, st.integers(0, 5))
def test_an_epoch_holds_each_sample_once(sizes: list[int], given_options: dict, epoch: int) -> None:
    order = mixture([np.array(sizes)], None, **given_options)
    expected = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert order.num_samples == len(expected)
    assert sorted(places(order, epoch, range(order.num_samples))) == expected


@given(counts, options, st.data())
def test_a_position_does_not_depend_on_what_is_asked_with_it(
    sizes: list[int], given_options: dict, data: st.DataObject
) -> None:
    order = mixture([np.array(sizes)], None, **given_options)
    whole = places(order, 1, range(order.num_samples))
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = data.draw(st.integers(start, len(whole)))
    again = mixture([np.array(sizes)], None, **given_options)
    assert places(again, 1, range(start, stop)) == whole[start:stop]
    behind = places(order, 1, range(len(whole), len(whole) + start))
    assert behind == whole[:start], "beyond the end it wraps"


@given(counts, options, st.integers(1, 8))
def test_a_substitute_is_a_sample_and_always_the_same(
    sizes: list[int], given_options: dict, attempt: int
) -> None:
    order = mixture([np.array(sizes)], None, **given_options)
    positions = np.arange(order.num_samples)
    one, two = order.locate(2, positions, attempt), order.locate(2, positions, attempt)
    assert (one.shard == two.shard).all() and (one.row == two.row).all()
    assert (one.row >= 0).all() and (one.row < np.array(sizes)[one.shard]).all()


@given(
    st.lists(st.integers(4, 20), min_size=2, max_size=3),
    st.data(),
    st.integers(0, 2**31 - 1),
)
def test_a_mixture_keeps_to_its_weights_and_gives_all_of_each_path(
    lengths: list[int], data: st.DataObject, seed: int
) -> None:
    weights = data.draw(st.lists(st.integers(1, 4), min_size=len(lengths), max_size=len(lengths)))
    order = mixture([np.array([n]) for n in lengths], weights, seed=seed, partitions=1)
    found = np.concatenate([order.locate(epoch, np.arange(order.num_samples)).shard for epoch in range(20)])
    shares = np.bincount(found, minlength=len(lengths)) / len(found)
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=3 * len(lengths) / len(found))


@given(st.integers(1, 5000), st.integers(0, 2**63 - 1))
def test_a_permutation_is_one(size: int, key: int) -> None:
    found = permute(np.arange(size), size, keyed(key))
    assert sorted(found.tolist()) == list(range(size))


@pytest.mark.parametrize("partitions", [1, 2])
def test_what_is_no_padding_is_each_sample_once(partitions: int) -> None:
    """Buckets whose last batch is not full: of 12 + 19 samples, in batches of 4."""
    counts = np.array([5, 7, 9, 10])
    made = bucketed(
        counts,
        ["a", "a", "b", "b"],
        4,
        False,
        seed=1,
        shuffle=True,
        window=8,
        partitions=partitions,
        stride=1,
    )
    positions = np.arange(made.num_samples)
    real = positions[~made.is_padding(0, positions)]
    there = made.locate(0, real)
    found = list(zip(there.shard.tolist(), there.row.tolist(), strict=True))
    if partitions == 1:
        assert len(found) == counts.sum()
    assert len(set(found)) == len(found)
    padding = made.locate(0, positions[made.is_padding(0, positions)])
    assert set(zip(padding.shard.tolist(), padding.row.tolist(), strict=True)) <= set(found)


def test_each_partition_has_the_mixture() -> None:
    """Two nodes, each with its own part of both datasets, in the proportion of 1 to 3 from the beginning."""
    counts = [np.array([40, 40]), np.array([120, 120])]
    made = mixture(counts, [1, 3], seed=1, shuffle=True, window=40, partitions=2, stride=4)
    there = made.locate(0, np.arange(made.num_samples))
    second = there.shard >= 2
    for node in (0, 1):
        turns = second.reshape(-1, 2, 4)[:, node].reshape(-1)
        for end in range(8, len(turns), 8):
            assert abs(turns[:end].mean() - 0.75) <= 1 / end + 1e-9


def test_weights_are_of_nine_digits_at_most() -> None:
    assert integer_weights([1, 2**31 - 2]) == (1, 2**31 - 2)
    for wrong in ([1, 2**31 - 1], [0, 1], [-1, 2]):
        with pytest.raises(ValueError, match="weights="):
            integer_weights(wrong)
