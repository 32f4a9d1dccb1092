"""LatentDataset: batches of latents from one or several datasets, those that its sampler deals to this rank."""

import copy
import os
from collections.abc import Iterator
from typing import Any, Literal, Unpack

from torch.utils.data import IterableDataset, get_worker_info

from loader.assembly import assemble, weights_of
from loader.batch import Batch
from loader.options import Options, Paths, settings_of
from loader.prefetch import FetchAhead
from loader.ranks import RankFinder, processes_here
from loader.reader import BatchReader
from loader.sampler import StatefulSampler
from loader.state import State


class LatentDataset(IterableDataset[Batch]):
    """Yields the batches of this rank for the rest of the present epoch; iterate again for the next epoch. A batch is a dict.

    B: batch_size; T: tokens; D, P: widths of the text encoder; NAME: of the encoder, `_NAME` is left out of the unnamed one's.

        image_latents            (B, C, H, W) float16, scaled (bfloat16 of shards made with --store bfloat16, and so below)
        drop_caption_mask        (B,) float32, 0 where the caption was dropped; drop_caption_mask_NAME of each encoder, where
                                 caption_drop_prob goes by encoder
        caption_latents_NAME     (B, 1, T, D) float16, where dropped zeros, or the empty caption's; zeros behind the last token
        caption_mask_NAME        (B, T) bool, True at real tokens; where their number varies
        caption_pooled_NAME      (B, P) float16, where dropped zeros, or the empty caption's; with pooled
        features_NAME            (B, N, D) float16; with features
        sample_mask              (B,) bool, False at samples that only fill up the last batch; with drop_last=False
        key, caption, ...        lists of B; size_conditioning (B, 6) float32; with extras

    Use it through `make_loader`, or as `DataLoader(dataset, batch_size=None)`. Keep the latter away from
    `accelerator.prepare` with several processes: it would deal out a rank's batches a second time.

    paths: a folder of shards, hf://datasets/USER/REPO[@REVISION][/FOLDER], https:// or what else fsspec opens; a tuple: a folder
        and the layers beside it; or a list of either, whose samples are one dataset, or a mixture where `weights` are given.
    batch_size: samples per rank and batch. options: see `loader.options.Options`.

    Raises ValueError for an argument that does not fit the shards, FormatError for an unreadable manifest.
    """

    def __init__(self, paths: Paths, batch_size: int, **options: Unpack[Options]) -> None:
        self._settings = settings = settings_of(batch_size, options)
        self.batch_size, self.drop_last, self.from_start = batch_size, settings.drop_last, settings.from_start
        rank = RankFinder(settings.rank, settings.world_size)
        self._assembly = made = assemble(paths, settings, rank.adopted.world_size)
        weights = weights_of(settings, len(made.sources))
        self.sampler = StatefulSampler(settings, made.order, made.shards, weights, rank)
        self._unfinished = False  # in a worker: an iteration was begun and not ended
        self._reader: tuple[int, BatchReader] | None = None

    @property
    def urls(self) -> list[str]:
        """The paths; hf:// ones have the commit that they are pinned to."""
        return [source.files.url for _, source in self._assembly.sources]

    @property
    def rank(self) -> int:
        """This process's rank, were iteration to begin now. Raises ValueError where nothing says it."""
        return self.sampler.rank.find().known

    @property
    def world_size(self) -> int:
        return self.sampler.rank.find().world_size

    @property
    def num_samples(self) -> int:
        """Positions of an epoch: all samples of all paths."""
        return self.sampler.num_samples

    @property
    def global_batch_size(self) -> int:
        return self.sampler.global_batch_size

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return len(self.sampler)

    @property
    def epoch(self) -> int:
        return self.sampler.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.sampler.go_to(epoch, self.sampler.position)

    @property
    def position(self) -> int:
        """Position of the epoch at which the next batch begins, on all ranks together."""
        return self.sampler.position

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`, unless it is the present one.

        Only a plain DataLoader with workers needs this: for each epoch it makes copies that know of no past.
        """
        self.sampler.set_epoch(epoch)

    def state_dict(self) -> State:
        """Say where the next batch begins, and the identity of the order; the same on every rank."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: State, shards: Literal["same", "added"] = "same") -> None:
        """Go on where `state` was taken, at any world size.

        shards: "added": there may be more shards than there were; then at the beginning of a new epoch, with all of them.
        Raises ValueError if the order of samples is another, shards are gone or changed, or where it is no state at all.
        """
        self.sampler.load_state_dict(state, shards)
        self._unfinished = False

    def __iter__(self) -> Iterator[Batch]:
        sampler = self.sampler
        sampler.begin()
        self._assembly.cache.stop.begin()
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker and self._unfinished:  # of what this copy has read, nobody knows how much was taken
            sampler.end_epoch()
        self._unfinished = bool(worker)
        # In a worker the position counts rounds of all workers, so that a copy restored from it finds its own batches.
        start, turns = sampler.position, sampler.turns(first, step)
        for number in range(first, sampler.batches_left(start), step):
            batch, _ = self.reader.read(*next(turns))
            if worker:
                sampler.go_to(sampler.epoch, start + (number - first + step) * sampler.global_batch_size)
            else:
                sampler.step_over_batch()
            yield batch
        if worker:
            self._unfinished = False
            sampler.end_epoch()

    @property
    def reader(self) -> BatchReader:
        """Made in the process that uses it: open files and locks do not cross over."""
        made, order, settings = self._assembly, self.sampler.order, self._settings
        if self._reader is None or self._reader[0] != os.getpid() or self._reader[1].order is not order:
            reader = BatchReader(
                made.sources, order, made.select, made.draw, settings.on_error, settings.pin_memory, made.cache,
                made.chosen,
            )  # fmt: skip
            self._reader = os.getpid(), reader
            made.cache.stop.begin()
        return self._reader[1]

    def fetch_ahead(self, first: int = 0, step: int = 1) -> FetchAhead | None:
        """Begin to fetch what the batches number first, first + step, ... need, one window ahead. None if all is local."""
        if not self._assembly.remote:
            return None
        self._assembly.cache.stop.begin()
        order = self.sampler.order
        steps = -(-order.window * len(order.groups) // (order.stride * order.unit))
        distance, processes = steps // step + 1, step * processes_here(self.sampler.rank.adopted.world_size)
        return FetchAhead(self.reader, self.sampler.turns(first, step), distance, processes)

    def stop_fetching(self) -> None:
        """Let those who wait for remote shards wait no longer."""
        self._assembly.cache.stop.set()

    def being_fetched(self) -> list[str]:
        """Files that this process is fetching now."""
        return sorted(self._assembly.cache.busy)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "sampler": copy.copy(self.sampler)}
