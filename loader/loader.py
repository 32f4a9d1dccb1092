"""make_loader: batches ready before they are asked for, and a state that counts what the trainer has had.

Threads (the default) fill batches in this process: reading releases the interpreter, and nothing is copied between
processes. `num_workers` processes do the same through torch's DataLoader.
"""

import itertools
import logging
import time
import weakref
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from loader.batch import Batch
from loader.dataset import LatentDataset, Path_, State

log = logging.getLogger("loader")

STALL = 30.0  # seconds
Counted = tuple[Batch, Counter[str]]


def make_loader(
    paths: Path_ | Sequence[Path_],
    batch_size: int,
    *,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 2,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
    **options: Any,
) -> "Loader":
    """An endlessly repeatable iterable of batches: each `for` gives the rest of the present epoch, the next one the next epoch.

    num_workers: processes that read; 0, the fastest for shards at hand: threads of this process.
    num_threads: without workers, batches made at the same time.
    prefetch: batches ready ahead (of each worker); also across the end of an epoch.
    pin_memory: for `.to(device, non_blocking=True)`.
    multiprocessing_context: "fork", "spawn" or "forkserver".
    options: as of LatentDataset.
    """
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("num_threads", num_threads, 1),
        ("prefetch", prefetch, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} is less than {least}")
    dataset = LatentDataset(paths, batch_size, **options)
    dataset.pin_memory = pin_memory and not num_workers
    return Loader(dataset, num_workers, num_threads, prefetch, pin_memory, multiprocessing_context)


class Loader:
    """What make_loader returns. `accelerator.prepare` leaves it as it is: ranks already get their own batches.

    It offers what `accelerator.register_for_checkpointing` asks for: state_dict and load_state_dict.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        num_workers: int,
        num_threads: int,
        prefetch: int,
        pin_memory: bool,
        multiprocessing_context: str | None,
    ) -> None:
        self.dataset = dataset
        self._workers, self._threads, self._prefetch = num_workers, num_threads, prefetch
        self._pin_memory, self._context = pin_memory, multiprocessing_context
        self._stream: Generator[Counted] | None = None
        self._counts: Counter[str] = Counter()
        self._waited = 0.0
        self._started = time.perf_counter()

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[Batch]:
        dataset = self.dataset
        if self._stream is None:
            self._stream = self._start()
            # At the end of the program too, while threads can still be told to stop.
            self._finalizer = weakref.finalize(self, self._stream.close)
        stream = self._stream
        for _ in range(dataset.batches_left(dataset.position)):
            asked = time.perf_counter()
            try:
                batch, counts = next(stream)
            except BaseException:
                self._stream = None
                raise
            self._waited += time.perf_counter() - asked
            self._counts.update(counts)
            dataset.step_over_batch()
            yield batch
            if self._stream is not stream:  # load_state_dict was called in the middle of the epoch
                return

    def state_dict(self) -> State:
        """A few integers, the same on every rank. Batches that are ready but not yet handed out do not count."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Go on where `state` was taken, with any number of ranks and workers. Raises ValueError for another order."""
        self.dataset.load_state_dict(state)
        self.close()

    def close(self) -> None:
        """Stop threads and workers; iterating again starts them. Dropping the loader does it too."""
        if self._stream is not None:
            self._finalizer()
            self._stream = None

    def stats(self) -> dict[str, Any]:
        """Since the loader was made, in this process and its workers, of the batches the trainer has had.

        samples, samples_per_second, seconds, waiting: seconds that the trainer stood still for data. bytes: read.
        mixture: share of each path. substitutes: samples that stand in for unreadable ones. Of remote shards also
        cache_hits, cache_misses, cache_evictions, fetched_bytes, retries.
        """
        seconds, counts = time.perf_counter() - self._started, self._counts
        samples = counts["samples"]
        return {
            "samples": samples,
            "samples_per_second": samples / seconds,
            "seconds": seconds,
            "waiting": self._waited,
            "substitutes": counts["substitutes"],
            "mixture": {
                url: counts[f"path {n}"] / max(samples, 1) for n, url in enumerate(self.dataset.urls)
            },
            **{
                name: n
                for name, n in counts.items()
                if name not in ("samples", "substitutes") and " " not in name
            },
        }

    def _start(self) -> Generator[Counted]:
        if self._workers == 0:
            return _in_threads(self.dataset, self._threads, self._prefetch)
        return _in_processes(self.dataset, self._workers, self._prefetch, self._pin_memory, self._context)


def _in_threads(dataset: LatentDataset, threads: int, prefetch: int) -> Generator[Counted]:
    turns, reader, ahead = dataset.turns(), dataset.reader, dataset.fetch_ahead()
    ready = deque[Future[Counted]]()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    try:
        while True:
            while len(ready) <= prefetch:
                ready.append(pool.submit(reader.read, *next(turns)))
                if ahead:
                    ahead.advance()
            yield _wait_for(ready.popleft(), dataset)
    finally:
        dataset.cache.stop.set()
        if ahead:
            ahead.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(batch: Future[Counted], dataset: LatentDataset) -> Counted:
    """With a line in the log for every so many seconds without it."""
    for number in itertools.count(1):
        wait([batch], timeout=STALL)
        if batch.done():
            break
        log.warning(
            "waiting since %.0f s for the batch at epoch %d, position %d; being fetched: %s",
            number * STALL,
            dataset.epoch,
            dataset.position,
            ", ".join(sorted(dataset.cache.busy)) or "nothing",
        )
    return batch.result()


class _Turns(IterableDataset[Counted]):
    """A worker's batches, without end."""

    def __init__(self, dataset: LatentDataset) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Counted]:
        worker = get_worker_info()
        assert worker is not None
        share = worker.id, worker.num_workers
        reader, ahead = self.dataset.reader, self.dataset.fetch_ahead(*share)
        for turn in self.dataset.turns(*share):
            yield reader.read(*turn)
            if ahead:
                ahead.advance()


def _in_processes(
    dataset: LatentDataset, workers: int, prefetch: int, pin_memory: bool, context: str | None
) -> Generator[Counted]:
    yield from DataLoader(
        _Turns(dataset),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        multiprocessing_context=context,
    )
