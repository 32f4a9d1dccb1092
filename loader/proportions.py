"""Shares of an epoch, in integers: how many positions each partition and each group has, and which is whose."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
FINE = 1 << 24  # steps between 0 and 1 in which shares of buckets are counted


@dataclass(frozen=True)
class Partitioning:
    """How an epoch is cut into partitions.

    units: (groups, partitions), those of each group. bounds: where they begin and end in its samples. totals: of each
    partition, in units. weights: of the groups, for each partition.
    """

    units: I64
    bounds: Sequence[I64]
    totals: I64
    weights: Sequence[Sequence[int]]


def cut_into_parts(
    shards: I64,
    groups: Sequence[I64],
    weights: Sequence[int],
    lengths: Sequence[int],
    unit: int,
    partitions: int,
) -> Partitioning:
    """Cut as evenly as can be; where there are units, at their bounds.

    Where every unit comes once an epoch (weights are lengths), each partition has weights of its own: its units of each group.
    """
    numbers = np.arange(partitions + 1, dtype=np.int64)

    def cut(total: int) -> I64:
        return numbers * total // partitions

    bounds = []
    for group, length in zip(groups, lengths, strict=True):
        total = int(shards[group].sum())
        starts = cut(total) if unit == 1 else np.minimum(cut(length) * unit, total)
        starts[-1] = total
        bounds.append(starts)
    units = np.array([np.diff(cut(length)) for length in lengths], np.int64).reshape(-1, partitions)
    if tuple(weights) == tuple(lengths):
        return Partitioning(units, bounds, units.sum(0), [tuple(column) for column in units.T.tolist()])
    return Partitioning(units, bounds, np.diff(cut(sum(lengths))), [tuple(weights)] * partitions)


def mix_in(index: I64, weights: Sequence[int]) -> tuple[I64, I64]:
    """(group, how many times the group came before) of each index.

    Any stretch of n holds `n * weight / total` of a group, give or take one or two.

    A group takes its share of the whole as evenly as integers allow (Bresenham's line), the next its share of the rest, ...
    """
    if 0 in weights:
        some = [number for number, weight in enumerate(weights) if weight]
        group, rest = mix_in(index, [weights[number] for number in some])
        return np.array(some)[group], rest
    group = np.full_like(index, len(weights) - 1)
    rest, todo = index.copy(), np.ones(len(index), bool)
    for number, weight in enumerate(weights[:-1]):
        total = sum(weights[number:])
        before, after = _share(rest, weight, total), _share(rest + 1, weight, total)
        mine = todo & (after > before)
        group[mine], rest[mine] = number, before[mine]
        todo &= ~mine
        rest[todo] -= before[todo]
    return group, rest


def _share(count: I64, weight: int, total: int) -> I64:
    """`count * weight / total`, rounded; in two parts, so that nothing overflows."""
    whole, part = np.divmod(count, total)
    return whole * weight + (part * weight + total // 2) // total


def weights_by_path(
    paths: Sequence[int], lengths: Sequence[int], weights: Sequence[float]
) -> tuple[int, ...]:
    """Weights of groups so that each path has its share, and inside of a path each bucket its share of the batches."""
    whole = integer_weights(weights)
    if missing := [n for n in range(len(whole)) if n not in paths]:
        raise ValueError(f"weights={list(weights)!r}: path number {missing[0]} fills no batch of any bucket")
    batches = [
        sum(length for p, length in zip(paths, lengths, strict=True) if p == n) for n in range(len(whole))
    ]
    exact = [
        Fraction(whole[p] * length, sum(whole) * batches[p]) for p, length in zip(paths, lengths, strict=True)
    ]
    return tuple(max(1, round(share * FINE)) for share in exact)


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest integers in the given proportion: [0.1, 0.9] and [1, 9] are (1, 9)."""
    try:
        exact = [Fraction(str(weight)) for weight in weights]
    except ValueError as error:
        raise ValueError(f"weights={list(weights)!r}: each must be a number") from error
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    common = gcd(*whole)
    if min(whole) <= 0 or sum(whole) // common >= 2**31:
        raise ValueError(f"weights={list(weights)!r}: each must be above 0, and of at most nine digits")
    return tuple(weight // common for weight in whole)
