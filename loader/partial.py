"""Some spans of a shard that is on the way: what the first batches read, so that they wait for no more than that."""

import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from loader.order import I64
from loader.part import PIECE, GrowingFile, write_at
from loader.private_files import make_private_folder

JOIN = 1 << 16  # bytes between two members that are fetched with them, rather than in two requests
LONGEST = 1 << 23  # bytes in one request
GAP = 1 << 22  # bytes in one request for what lies between


class Partial:
    """A file without a name that holds some spans at their places, and takes no more room than they do.

    spans: (first byte, byte behind the last), in order. descriptor: for os.pread; closed when nobody uses the object any more.
    """

    def __init__(self, folder: Path, spans: Sequence[tuple[int, int]]) -> None:
        make_private_folder(folder)
        self.descriptor, path = tempfile.mkstemp(dir=folder)
        os.unlink(path)
        weakref.finalize(self, os.close, self.descriptor)
        self.spans = sorted(spans)

    def put(self, start: int, data: bytes) -> None:
        """Raises OSError where not all of it can be written, as on a full disk."""
        write_at(self.descriptor, data, start)

    def copy(self, part: GrowingFile) -> None:
        """Add what is here of the bytes that a part lacks next. Raises OSError where a span was not written."""
        for start, end in self.spans:
            while start <= part.size < end:
                data = os.pread(self.descriptor, min(PIECE, end - part.size), part.size)
                if not data:
                    raise OSError("a span that was fetched is not here")
                part.add(data)

    def gaps(self, begin: int, size: int) -> Iterator[tuple[int, int]]:
        """What is not here, from byte `begin` of `size`, in pieces."""
        for start, end in (*self.spans, (size, size)):
            for place in range(begin, start, GAP):
                yield place, min(place + GAP, start)
            begin = max(begin, end)


def spans_of(offsets: I64, sizes: I64) -> list[tuple[int, int]]:
    """What to fetch for members at some places: neighbours joined, in order."""
    order = np.argsort(offsets, kind="stable")
    spans: list[tuple[int, int]] = []
    for start, size in zip(offsets[order].tolist(), sizes[order].tolist(), strict=True):
        end = start + size
        if spans and start <= spans[-1][1] + JOIN and end - spans[-1][0] <= LONGEST:
            spans[-1] = spans[-1][0], max(spans[-1][1], end)
        elif size:
            spans.append((start, end))
    return spans
