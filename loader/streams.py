"""Batches made ahead of their use, in threads of this process or in processes of torch's DataLoader."""

import itertools
import logging
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from loader.batch import Batch
from loader.dataset import LatentDataset

log = logging.getLogger("loader")

STALL = 30.0  # seconds
Counted = tuple[Batch, Counter[str]]
T = TypeVar("T")


def as_it_is(value: T) -> T:
    """What torch is given to collate with: its own makes numbers of a Counter by adding it to itself."""
    return value


def in_threads(dataset: LatentDataset, threads: int, prefetch: int) -> Generator[Counted]:
    turns, reader, ahead = dataset.sampler.turns(), dataset.reader, dataset.fetch_ahead()
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
        dataset.stop_fetching()
        if ahead:
            ahead.close()
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for(batch: Future[Counted], dataset: LatentDataset) -> Counted:
    """Wait, with a line in the log for every so many seconds."""
    for number in itertools.count(1):
        wait([batch], timeout=STALL)
        if batch.done():
            break
        log.warning(
            "waiting since %.0f s for the batch at epoch %d, position %d; being fetched: %s",
            number * STALL,
            dataset.epoch,
            dataset.position,
            ", ".join(dataset.being_fetched()) or "nothing",
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
        for turn in self.dataset.sampler.turns(*share):
            yield reader.read(*turn)
            if ahead:
                ahead.advance()


def in_processes(
    dataset: LatentDataset, workers: int, prefetch: int, pin_memory: bool, context: str | None
) -> Generator[Counted]:
    yield from DataLoader(
        _Turns(dataset),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=prefetch,
        pin_memory=pin_memory,
        multiprocessing_context=context,
        collate_fn=as_it_is,
    )
