"""Pictures that are nearly the same, by their 64-bit hashes, among millions: no two are compared that share no two blocks of bits.

Two hashes that differ in at most `distance` bits are equal in two of `distance` + 2 blocks, so they are found side by side where all
are sorted by these two (Manku et al., "Detecting near-duplicates for web crawling", 2007).
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.sidecar import I64

MOST = 12  # bits: beyond, the blocks are so short that all would be compared with all
AT_ONCE = 1 << 15  # hashes: with what is made of them they fit into the L2 cache of a core
U64 = npt.NDArray[np.uint64]


def near_duplicates(hashes: U64, distance: int) -> I64:
    """The group of each hash, named by the first of its members: those within `distance` bits of another one of it.

    Takes some 80 bytes a hash. The time is that of the 28 sorts of distance 6, and of comparing each hash with those that share two
    blocks with it, a 65,536th of all where hashes are even.
    """
    unique, first, place = np.unique(hashes, return_index=True, return_inverse=True)
    # Distinct hashes are numbered as they come in the dataset, so that the least of a group names it.
    by_place = np.argsort(first)
    groups = Groups(len(unique))
    for left, right in _pairs(unique[by_place], distance):
        groups.join(left, right)
    number = np.empty_like(by_place)
    number[by_place] = np.arange(len(by_place))
    return first[by_place][groups.names()][number[place]]


class Groups:
    """Numbers that belong together. parents: of each another one of its group, or itself, never a greater one."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count)

    def join(self, left: I64, right: I64) -> None:
        """Each of these belongs with the other."""
        while len(left):
            left, right = self._roots(left), self._roots(right)
            apart = left != right
            left, right = left[apart], right[apart]
            np.minimum.at(self._parents, np.maximum(left, right), np.minimum(left, right))

    def names(self) -> I64:
        """The least of each one's group."""
        return self._roots(np.arange(len(self._parents)))

    def _roots(self, numbers: I64) -> I64:
        found = numbers
        while len(numbers) and not np.array_equal(above := self._parents[found], found):
            found = above
        self._parents[numbers] = found
        return found


def _pairs(hashes: U64, distance: int) -> Iterator[tuple[I64, I64]]:
    """Numbers of distinct hashes within `distance` of each other; some pairs more than once."""
    ends = np.linspace(0, 64, distance + 3).round().astype(int).tolist()
    for blocks in itertools.combinations(itertools.pairwise(ends), 2) if distance else ():
        keys = _bits(hashes, blocks)
        order = np.argsort(keys, kind="stable")
        for left, right in _near(hashes[order], keys[order], distance):
            yield order[left], order[right]


def _bits(hashes: U64, blocks: Iterable[tuple[int, int]]) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Some blocks of bits, end to end, as the smallest integers that hold them: 16 bits are sorted several times as fast."""
    keys, width = np.zeros_like(hashes), 0
    for start, end in blocks:
        keys |= ((hashes >> np.uint64(start)) & np.uint64((1 << end - start) - 1)) << np.uint64(width)
        width += end - start
    return keys.astype(np.min_scalar_type((1 << width) - 1))


def _near(
    hashes: U64, keys: npt.NDArray[np.unsignedinteger[Any]], distance: int
) -> Iterator[tuple[I64, I64]]:
    """Places of those of one key, side by side, that are within `distance`."""
    # How many behind each are of its key.
    behind = np.searchsorted(keys, keys, side="right") - np.arange(1, len(keys) + 1)
    for begin in range(0, len(hashes), AT_ONCE):
        left = np.arange(begin, min(begin + AT_ONCE, len(hashes)))
        for step in range(1, int(behind[left].max()) + 1):
            left = left[behind[left] >= step]
            near = left[np.bitwise_count(hashes[left] ^ hashes[left + step]) <= distance]
            if len(near):
                yield near, near + step
