"""Randomness as arithmetic: hashes, permutations and normal deviates that are pure functions of integer keys.

Nothing here has a state to save or a stream to replay: value number i of key k can be had at any time, in any process, at
the same cost. Only integer operations and one table decide a value, so it does not change with the version of a library.
"""

import functools
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
Integers = int | npt.NDArray[Any]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MASK = 2**64 - 1
ROUNDS = 4
NORMALS_AT_ONCE = 1 << 16  # fits into the L2 cache of a core


def mix(x: U64) -> U64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): a bijection in which every bit hangs on every bit. In place."""
    scratch = x >> np.uint64(30)
    np.bitwise_xor(x, scratch, out=x)
    np.multiply(x, np.uint64(0xBF58476D1CE4E5B9), out=x)
    np.right_shift(x, np.uint64(27), out=scratch)
    np.bitwise_xor(x, scratch, out=x)
    np.multiply(x, np.uint64(0x94D049BB133111EB), out=x)
    np.right_shift(x, np.uint64(31), out=scratch)
    np.bitwise_xor(x, scratch, out=x)
    return x


def keyed(*parts: Integers) -> U64:
    """A 64-bit hash of the parts, element by element; integers count as arrays of one."""
    state: U64 = np.zeros(1, np.uint64)
    for part in parts:
        word = np.array([part & MASK], np.uint64) if isinstance(part, int) else part.astype(np.uint64)
        state = mix((state + GOLDEN) ^ word)
    return state


def permute(index: npt.NDArray[np.int64], size: Integers, key: U64) -> npt.NDArray[np.int64]:
    """Say where `index` goes in permutation number `key` of `range(size)`; element by element, in constant memory.

    Two Feistel networks on grids of width x height >= size cells, each followed by a rotation. What a network sends
    outside of `size` walks on until it is inside, which makes a bijection of the grid one of the range. One network alone
    reaches the orders of a few items unevenly.
    """
    x, n, k = np.broadcast_arrays(index, np.asarray(size), key)
    x, n = x.astype(np.uint64), n.astype(np.uint64)
    for turn in range(2):
        width = np.ceil(np.sqrt(n)).astype(np.uint64) + np.uint64(turn)
        x = _feistel(x, n, width, k, ROUNDS * turn)
        x = (x + mix(k + _odd_multiple(2 * ROUNDS + turn)) % n) % n
    return x.astype(np.int64)


def _feistel(x: U64, size: U64, width: U64, key: U64, first_round: int) -> U64:
    height = (size + width - np.uint64(1)) // width
    left, right = np.divmod(x, height)
    for number in range(ROUNDS):
        salt = key + _odd_multiple(first_round + number)
        if number % 2:
            right = (right + mix(salt ^ left) % height) % height
        else:
            left = (left + mix(salt ^ right) % width) % width
    x = left * height + right
    if (outside := x >= size).any():
        x[outside] = _feistel(x[outside], size[outside], width[outside], key[outside], first_round)
    return x


def _odd_multiple(number: int) -> np.uint64:
    return np.uint64((2 * number + 1) * int(GOLDEN) & MASK)


def uniform(key: U64) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each hash."""
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: U64, count: int) -> F32:
    """(len(key), count) standard normal deviates; row i depends on `key[i]` alone.

    Each takes 16 bits of SplitMix64 to one of 65,536 equally likely quantiles (the last at 4.3 sigma), finer than the
    float16 that a latent is rounded to, and four times as fast as numpy's exact ones.
    """
    table = _quantiles()
    words = -(-count // 4)
    counter = np.arange(1, words + 1, dtype=np.uint64) * GOLDEN
    out = np.empty((len(key), words * 4), np.float32)
    step = max(1, NORMALS_AT_ONCE // (words * 4))
    for start in range(0, len(key), step):
        bits = mix(key[start : start + step, None] + counter)
        np.take(table, bits.astype("<u8", copy=False).view("<u2"), out=out[start : start + step], mode="wrap")
    return out[:, :count]


@functools.cache
def _quantiles() -> F32:
    bell = NormalDist()
    upper = np.array([bell.inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)])
    table = np.concatenate([-upper[::-1], upper])
    return (table / math.sqrt(math.fsum(table**2) / len(table))).astype(np.float32)
