"""Byte ranges that are read before their file is here, and verified: what was taken for them, until the file can tell."""

import hashlib
import os
from collections import defaultdict


class Unproven:
    """Hashes of byte ranges, by the name of the file."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[tuple[int, int], bytes]] = defaultdict(dict)

    def add(self, name: str, start: int, data: bytes) -> None:
        self._seen[name][start, start + len(data)] = hashlib.sha256(data).digest()

    def wrong(self, name: str, descriptor: int) -> int:
        """How many ranges of a file were not what the verified one holds; each is asked for once."""
        return sum(
            hashlib.sha256(os.pread(descriptor, end - start, start)).digest() != digest
            for (start, end), digest in self._seen.pop(name, {}).items()
        )
