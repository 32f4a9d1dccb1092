"""Fetching remote shards before they are needed. The order is known, so what comes next is no guess, at an epoch's end either."""

import fcntl
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loader.cache import Stopped
from loader.format import FormatError
from loader.reader import BatchReader

log = logging.getLogger("loader")

THREADS = 4
Turn = tuple[int, npt.NDArray[np.int64]]


class FetchAhead:
    """Threads that fetch the shards of the next `distance` batches; of all processes of a machine only one does it at a time."""

    def __init__(self, reader: BatchReader, turns: Iterator[Turn], distance: int, folder: Path) -> None:
        self._reader, self._distance, self._folder = reader, distance, folder
        self._stop = threading.Event()
        self._failed: set[int] = set()
        self._read, self._moved = 0, threading.Condition()
        self._shards, self._one = self._next_shards(turns), threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, name="loader-ahead", daemon=True) for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def advance(self) -> None:
        """A batch was begun."""
        with self._moved:
            self._read += 1
            self._moved.notify_all()

    def close(self) -> None:
        self._stop.set()
        self.advance()
        for thread in self._threads:
            thread.join(timeout=1)

    def _next_shards(self, turns: Iterator[Turn]) -> Iterator[int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "fetcher.lock").open("w") as turnstile:
            while not self._stop.is_set():
                try:
                    fcntl.flock(turnstile, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._stop.wait(0.5)
            for number, (epoch, positions) in enumerate(turns):
                with self._moved:
                    self._moved.wait_for(lambda: self._stop.is_set() or number < self._read + self._distance)  # noqa: B023
                if self._stop.is_set():
                    return
                if number >= self._read:  # another process may have been the fetcher until now
                    yield from np.unique(self._reader.order.locate(epoch, positions).shard).tolist()

    def _run(self) -> None:
        while True:
            with self._one:
                shard = next(self._shards, None)
            if shard is None:
                return
            if shard in self._failed:
                continue
            try:
                while not self._reader.prefetch(shard):
                    if self._stop.wait(0.5):
                        return
            except Stopped:
                return
            except (OSError, FormatError) as error:
                self._failed.add(shard)
                log.info("%s: %s", self._reader.name(shard), error)  # told, and dealt with, when it is needed
