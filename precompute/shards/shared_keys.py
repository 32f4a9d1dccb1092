"""Whether a key stands more than once in some datasets: they are compared by hashes in a temporary file, not in memory."""

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

SEEN = 1 << 20  # hashes compared at once
ASKED = 4096  # recurring hashes whose keys are looked up, at most: two keys with one hash are rare

U64 = npt.NDArray[np.uint64]
KeyColumns = Iterable[tuple[int, Any]]


def find_shared_key(columns: Callable[[], KeyColumns], total: int) -> tuple[str, int, int] | None:
    """A key and the numbers of the two datasets that both have it, or of the one that has it twice.

    columns: (number of the dataset, Arrow column of keys), anew at each call; total: keys in all of them.
    """
    with tempfile.TemporaryFile() as file:
        file.truncate(8 * max(total, 1))
        hashes = np.memmap(file, np.uint64, "r+", shape=(max(total, 1),))[:total]
        end = 0
        for _, keys in columns():
            hashes[end : (end := end + len(keys))] = _hashes(keys)
        hashes.sort()
        recurring = np.fromiter(itertools.islice(_recurring(hashes), ASKED), np.uint64)
    owners: dict[str, int] = {}
    for number, keys in columns() if len(recurring) else ():
        for row in np.flatnonzero(np.isin(_hashes(keys), recurring)).tolist():
            key = keys[row].as_py()
            if key in owners:
                return key, owners[key], number
            owners[key] = number
    return None


def _hashes(keys: Any) -> U64:
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys.to_pylist())
    return np.frombuffer(b"".join(digests), np.uint64)


def _recurring(hashes: U64) -> Iterator[int]:
    """Those that stand more than once in a sorted array."""
    for start in range(0, len(hashes), SEEN):
        part = hashes[start : start + SEEN + 1]
        yield from part[:-1][part[1:] == part[:-1]].tolist()
