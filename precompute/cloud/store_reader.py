"""Shards in an object store, read in place: ranges of what is shown, streams of what is proven, nothing copied down."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from precompute.cloud.objects import Objects
from precompute.shards.store import File

PATIENCE = 60.0  # seconds of pauses: whoever reads can come back, nothing is lost meanwhile
BLOCK = 1 << 20


class StoreReader:
    """The files below a URL. options: `--store-option NAME=VALUE`; patience: seconds of pauses. Raises UsageError; reading raises
    StoreError, an OSError."""

    local = False

    def __init__(self, url: str, options: Iterable[str], patience: float | None = None) -> None:
        self._objects = Objects.open("", url, options, PATIENCE if patience is None else patience)

    def list(self) -> tuple[dict[str, File], list[str]]:
        return {found.key: File(found.size) for found in self._objects.list()}, []

    def read(self, path: str, start: int | None, end: int | None) -> bytes:
        if end is not None:
            return self._objects.get_range(path, start or 0, end)
        found = self._objects.get(path)
        if found is None:
            raise FileNotFoundError(f"{self._objects.url}/{path}: no such file")
        return found[0][start or 0 :]

    def open(self, path: str) -> BinaryIO:
        return cast(BinaryIO, io.BufferedReader(_BlockFile(self._objects.stream(path)), BLOCK))


class _BlockFile(io.RawIOBase):
    """Blocks as a file to read forward."""

    def __init__(self, blocks: Iterator[memoryview]) -> None:
        self._blocks, self._block = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._block:
            self._block = next(self._blocks, memoryview(b""))
        count = min(len(self._block), len(buffer))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count
