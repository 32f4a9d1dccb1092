"""make_loader: batches ready before they are asked for, and a state that counts what the trainer has had.

Threads (the default) fill batches in this process: reading releases the interpreter, and nothing is copied between
processes. `num_workers` processes do the same through torch's DataLoader.
"""

import time
import weakref
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any, Literal, Unpack

from loader.batch import Batch
from loader.dataset import LatentDataset
from loader.options import Options, Paths
from loader.samples import BatchSampler, Samples
from loader.state import State
from loader.streams import Counted, as_it_is, in_processes, in_threads


def make_loader(
    paths: Paths,
    batch_size: int,
    *,
    num_workers: int = 0,
    num_threads: int = 2,
    prefetch: int = 2,
    multiprocessing_context: str | None = None,
    **options: Unpack[Options],
) -> "Loader":
    """An endlessly repeatable iterable of batches: each `for` gives the rest of the present epoch, the next one the next epoch.

    What a batch holds: see `LatentDataset`.

    num_workers: processes that read; 0, the fastest for shards at hand: threads of this process.
    num_threads: without workers, batches made at the same time.
    prefetch: batches ready ahead (of each worker); also across the end of an epoch.
    multiprocessing_context: "fork", "spawn" or "forkserver".
    options: see `loader.options.Options`.
    """
    for name, value, least in (
        ("num_workers", num_workers, 0),
        ("num_threads", num_threads, 1),
        ("prefetch", prefetch, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} is less than {least}")
    pin_memory = options.get("pin_memory", False)
    if num_workers:  # the process that gets a worker's batch pins it
        options["pin_memory"] = False
    dataset = LatentDataset(paths, batch_size, **options)
    return Loader(dataset, num_workers, num_threads, prefetch, pin_memory, multiprocessing_context)


class Loader:
    """What make_loader returns. `accelerator.prepare` leaves it as it is: ranks already get their own batches.

    It offers what `accelerator.register_for_checkpointing` asks for, state_dict and load_state_dict, and what scripts and
    `accelerator.skip_first_batches` look for on a DataLoader: batch_size, drop_last, dataset, batch_sampler, set_epoch.
    """

    sampler = prefetch_factor = None
    collate_fn = staticmethod(as_it_is)

    def __init__(
        self,
        dataset: LatentDataset,
        num_workers: int,
        num_threads: int,
        prefetch: int,
        pin_memory: bool,
        multiprocessing_context: str | None,
    ) -> None:
        self.batches = dataset
        self._workers, self._threads, self._prefetch = num_workers, num_threads, prefetch
        self._pin_memory, self._context = pin_memory, multiprocessing_context
        self._stream: Generator[Counted] | None = None
        self._counts: Counter[str] = Counter()
        self._waited = 0.0
        self._started = time.perf_counter()

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return len(self.batches)

    @property
    def batch_size(self) -> int:
        return self.batches.batch_size

    @property
    def drop_last(self) -> bool:
        return self.batches.drop_last

    @property
    def dataset(self) -> Samples:
        """The samples of the present epoch, of all ranks: `len(loader.dataset)` is how many they are."""
        return Samples(self.batches, self._take, self.set_epoch)

    @property
    def batch_sampler(self) -> BatchSampler:
        """Positions of this rank's batches in the present epoch, from its beginning."""
        return BatchSampler(self.batches.sampler, self.set_epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`, unless it is the present one. No loop needs it: epochs follow each other."""
        before = self.batches.epoch
        self.batches.set_epoch(epoch)
        if epoch != before:
            self.close()

    def __iter__(self) -> Iterator[Batch]:
        sampler = self.batches.sampler
        if sampler.begin():
            self.close()
        stream = self._open_stream()
        for _ in range(sampler.batches_left(sampler.position)):
            yield self._next(stream)
            if self._stream is not stream:  # load_state_dict was called in the middle of the epoch
                return

    def state_dict(self) -> State:
        """A few integers, the same on every rank. Batches that are ready but not yet handed out do not count."""
        return self.batches.state_dict()

    def load_state_dict(self, state: State, shards: Literal["same", "added"] = "same") -> None:
        """Go on where `state` was taken, with any number of ranks and workers. Raises ValueError for another order.

        shards: "added": there may be more shards than there were; then at the beginning of a new epoch, with all of them.
        """
        self.batches.load_state_dict(state, shards)
        self.close()

    def close(self) -> None:
        """Stop threads and workers; iterating again starts them. Dropping the loader does it too."""
        if self._stream is not None:
            self._finalizer()
            self._stream = None

    def stats(self) -> dict[str, Any]:
        """Count what the batches that the trainer has had took, in this process and its workers, since the loader was made.

        samples, samples_per_second, seconds, waiting: seconds that the trainer stood still for data. bytes: read.
        mixture: share of each path. substitutes: samples that stand in for unreadable ones. Of remote shards also
        cache_hits, cache_misses, cache_evictions, fetched_bytes, retries; ranges: requests by which first batches were read;
        wrong_ranges: those of them whose bytes were not what the verified shard holds.
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
                url: counts[f"path {n}"] / max(samples, 1) for n, url in enumerate(self.batches.urls)
            },
            **{
                name: n
                for name, n in counts.items()
                if name not in ("samples", "substitutes") and " " not in name
            },
        }

    def _take(self, position: int) -> Batch:
        """The batch that begins at `position` of the present epoch; the next one is ready ahead."""
        sampler = self.batches.sampler
        if sampler.position != position:
            sampler.go_to(sampler.epoch, position)
            self.close()
        return self._next(self._open_stream())

    def _next(self, stream: Generator[Counted]) -> Batch:
        asked = time.perf_counter()
        try:
            batch, counts = next(stream)
        except BaseException:
            self._stream = None
            raise
        self._waited += time.perf_counter() - asked
        self._counts.update(counts)
        self.batches.sampler.step_over_batch()
        return batch

    def _open_stream(self) -> Generator[Counted]:
        if self._stream is None:
            if self._workers == 0:
                stream = in_threads(self.batches, self._threads, self._prefetch)
            else:
                stream = in_processes(
                    self.batches, self._workers, self._prefetch, self._pin_memory, self._context
                )
            self._stream = stream
            # At the end of the program too, while threads can still be told to stop.
            self._finalizer = weakref.finalize(self, stream.close)
        return self._stream

    def __getstate__(self) -> dict[str, Any]:
        """Say where it is; what it has ready stays behind, and the copy starts threads or workers of its own."""
        state = {**self.__dict__, "_stream": None, "_started": time.perf_counter(), "_counts": Counter()}
        state.pop("_finalizer", None)
        return {**state, "_waited": 0.0}
