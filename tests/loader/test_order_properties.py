"""Properties of the order that hold for any shards, weights, windows, partitions and worlds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loader.counter_rng import keyed, permute
from loader.order import Order, mixture

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
