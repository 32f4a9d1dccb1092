"""Pictures that are nearly the same, by their 64-bit hashes, among millions: no two are compared that share no two blocks of bits.

Two hashes that differ in at most `distance` bits are equal in two of `distance` + 2 blocks, so they are found side by side where all
are sorted by these two (Manku et al., "Detecting near-duplicates for web crawling", 2007).
"""

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.sidecar import I64

MOST = 12  # bits: beyond, the blocks are so short that all would be compared with all
AT_ONCE = 1 << 15  # hashes: with what is made of them they fit into the L2 cache of a core
U64 = npt.NDArray[np.uint64]


def near_duplicates(hashes: U64, distance: int) -> I64:
    """The group of each hash, named by the first of its members: those within `distance` bits of another one of it.

    Takes some 80 bytes a hash, and 40 more for each core. The time is that of comparing each hash with those that share two blocks
    with it: for distance 6, and hashes that are even, 28 times with a 65,536th of all; four millions take some 40 s of a core.
    """
    unique, first, place = np.unique(hashes, return_index=True, return_inverse=True)
    # Distinct hashes are numbered as they come in the dataset, so that the least of a group names it.
    by_place = np.argsort(first)
    groups, in_order = Groups(len(unique)), unique[by_place]
    ends = np.linspace(0, 64, distance + 3).round().astype(int).tolist()
    blocks = itertools.combinations(itertools.pairwise(ends), 2) if distance else ()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(_join_near, in_order, two, distance, groups) for two in blocks]:
            done.result()
    number = np.empty_like(by_place)
    number[by_place] = np.arange(len(by_place))
    return first[by_place][groups.names()][number[place]]


class Groups:
    """Numbers that belong together, which threads share. parents: of each another one of its group, or itself, never a greater one."""

    def __init__(self, count: int) -> None:
        self._parents, self._lock = np.arange(count), threading.Lock()

    def join(self, left: I64, right: I64) -> None:
        """Each of these belongs with the other."""
        with self._lock:
            self._join(left, right)

    def _join(self, left: I64, right: I64) -> None:
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


def _join_near(hashes: U64, blocks: Sequence[tuple[int, int]], distance: int, groups: Groups) -> None:
    """Join the numbers of distinct hashes that share these blocks and are within `distance`."""
    keys = _bits(hashes, blocks)
    order = np.argsort(keys, kind="stable")
    for left, right in _near(hashes[order], keys[order], distance):
        groups.join(order[left], order[right])


def _bits(hashes: U64, blocks: Sequence[tuple[int, int]]) -> npt.NDArray[np.unsignedinteger[Any]]:
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
    # How many behind each are of its key; those with the most go first, so that those of any step lie together.
    behind = np.searchsorted(keys, keys, side="right") - np.arange(1, len(keys) + 1)
    for begin in range(0, len(hashes), AT_ONCE):
        some = begin + np.argsort(-behind[begin : begin + AT_ONCE])
        fewer, own = -behind[some], hashes[some]
        for step in range(1, 1 - int(fewer[0])):
            count = int(np.searchsorted(fewer, -step, side="right"))
            apart = np.bitwise_count(own[:count] ^ hashes[some[:count] + step])
            if len(near := some[:count][apart <= distance]):
                yield near, near + step
