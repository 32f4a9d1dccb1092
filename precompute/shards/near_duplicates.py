"""Pictures that are nearly the same, by their 64-bit hashes, among millions: no two are compared that share no two blocks of bits.

Two hashes that differ in at most `distance` bits are equal in two of `distance` + 2 blocks, so they are found side by side where all
are sorted by these two (Manku et al., "Detecting near-duplicates for web crawling", 2007).
"""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from loader.sidecar import I64

MOST = 12  # bits: beyond, the blocks are so short that all would be compared with all
U64 = npt.NDArray[np.uint64]


def near_duplicates(hashes: U64, distance: int) -> I64:
    """The group of each hash, named by the first of its members: those within `distance` bits of another one of it.

    Takes some 50 bytes a hash, and for the 28 sorts of distance 6 some ten seconds a million.
    """
    unique, first, place = np.unique(hashes, return_index=True, return_inverse=True)
    # Of each distinct hash, the number of another one of its group, down to one that names itself.
    parents: list[int] = list(range(len(unique)))

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = number = parents[parents[number]]
        return number

    for left, right in _pairs(unique, distance):
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            one, other = root(one), root(other)
            # The one that comes first in the dataset stays the name.
            keep, join = (one, other) if first[one] <= first[other] else (other, one)
            parents[join] = keep
    names = np.array([first[root(number)] for number in range(len(unique))], np.int64)
    return names[place]


def _pairs(unique: U64, distance: int) -> Iterator[tuple[I64, I64]]:
    """Distinct hashes within `distance` of each other; some pairs more than once."""
    ends = np.linspace(0, 64, distance + 3).round().astype(int).tolist()
    blocks = [((1 << end) - 1) ^ ((1 << start) - 1) for start, end in itertools.pairwise(ends)]
    for one, other in itertools.combinations(blocks, 2) if distance else ():
        keys = unique & np.uint64(one | other)
        order = np.argsort(keys)
        keys = keys[order]
        at, step = np.arange(len(keys)), 1
        while len(at := at[at + step < len(keys)]) and len(at := at[keys[at] == keys[at + step]]):
            left, right = order[at], order[at + step]
            near = np.bitwise_count(unique[left] ^ unique[right]) <= distance
            yield left[near], right[near]
            step += 1
