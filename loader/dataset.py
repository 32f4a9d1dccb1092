"""LatentDataset: batches of latents from one or several datasets, and the state that says how far one got.

Batches are cut from one global stream of samples (order.py) and dealt to ranks and workers, so the stream depends on neither.
"""

import logging
import os
from collections.abc import Iterator
from typing import Any, Literal, Unpack

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from loader.assembly import assemble, stride_of, weights_of
from loader.batch import Batch
from loader.options import Options, Paths, settings_of
from loader.order import I64
from loader.prefetch import FetchAhead
from loader.ranks import Rank, given_rank, present_rank, processes_here, tell_doubt
from loader.reader import BatchReader
from loader.state import State, check_state, hash_of

log = logging.getLogger("loader")

Turn = tuple[int, I64]


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
        self._given = given_rank(settings.rank, settings.world_size)
        self._rank, self._pickled, self._restored = tell_doubt(self._present()), False, False
        self._assembly = assemble(paths, settings, self._rank.world_size)
        self.epoch = self.position = 0
        self._unfinished = False  # in a worker: an iteration was begun and not ended
        self._reader: tuple[int, BatchReader] | None = None
        self._check_rank(self._rank)

    @property
    def urls(self) -> list[str]:
        """The paths; hf:// ones have the commit that they are pinned to."""
        return [source.files.url for _, source in self._assembly.sources]

    # --- ranks

    @property
    def rank(self) -> int:
        """This process's rank, were iteration to begin now. Raises ValueError where nothing says it."""
        return self._present().known

    @property
    def world_size(self) -> int:
        return self._present().world_size

    def adopt_rank(self) -> bool:
        """Look which rank this process is now; iteration begins with it. True if it is another than before.

        Raises ValueError where the rank is not known, or the samples do not fill a batch on each.
        """
        rank, before = self._present(), self._rank
        _ = rank.known
        if (rank.number, rank.world_size) == (before.number, before.world_size):
            return False
        self._check_rank(rank)
        log.info("rank %s of %d now (%s)", rank.number, rank.world_size, rank.told_by)
        self._rank = rank
        stride = stride_of(self._settings, self._assembly.order.unit, rank.world_size)
        if not self._restored and self.epoch == self.position == 0:
            self._use_stride(stride)
        return True

    def _present(self) -> Rank:
        if self._given is not None:
            return self._given
        if get_worker_info() is not None and self._pickled:  # a new process knows of no process group
            return self._rank
        return present_rank()

    def _check_rank(self, rank: Rank) -> None:
        partitions, size = self._settings.partitions, rank.world_size
        if size % partitions:
            raise ValueError(
                f"partitions={partitions} does not divide the world size, {size} ({rank.told_by}); give as many as nodes, "
                "and make the loader after torch.distributed is initialised"
            )
        if not self._batches(0, size):
            raise ValueError(
                f"batch_size={self.batch_size} on {size} ranks: {int(self._assembly.order.shards.sum())} samples do not "
                "fill one batch each; lower it, or give drop_last=False"
            )

    # --- length and position

    @property
    def num_samples(self) -> int:
        """Positions of an epoch: all samples of all paths."""
        return self._assembly.order.num_samples

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self._rank.world_size

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self._batches(0, self.world_size)

    def batches_left(self, position: int) -> int:
        return self._batches(position, self._rank.world_size)

    def _batches(self, position: int, world_size: int) -> int:
        left, size = max(0, self.num_samples - position), self.batch_size * world_size
        return left // size if self.drop_last else -(-left // size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`, unless it is the present one.

        Only a plain DataLoader with workers needs this: it makes new copies of the dataset, which know of no past, for each
        epoch. With persistent_workers the copies stay, and count by themselves.
        """
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def go_to(self, position: int) -> None:
        """Go to a position of the present epoch, the beginning of a batch."""
        self.position = position

    def state_dict(self) -> State:
        """Say where the next batch begins, and the identity of the order; the same on every rank."""
        order = self._assembly.order
        return {
            "epoch": self.epoch, "position": self.position, "stride": order.stride, **self._identity(),
            **self._assembly.shards.state(),
        }  # fmt: skip

    def _identity(self) -> State:
        """What decides the order beside the shards."""
        order = self._assembly.order
        weights = weights_of(self._settings, len(self._assembly.sources))
        identity = {
            "seed": order.seed,
            "window": order.window * order.shuffle,
            "partitions": order.partitions,
        }
        return {**identity, "unit": order.unit, "weights": hash_of(weights)}

    def load_state_dict(self, state: State, shards: Literal["same", "added"] = "same") -> None:
        """Go on where `state` was taken, at any world size.

        shards: "added": there may be more shards than there were; then at the beginning of a new epoch, with all of them.
        Raises ValueError if the order of samples is another, shards are gone or changed, or where it is no state at all.
        """
        added = check_state(state, self._identity(), self._assembly.shards, shards)
        self.epoch, self.position, self._unfinished = state["epoch"], state["position"], False
        if self.position and (added or (get_worker_info() is None and not self.batches_left(self.position))):
            self.epoch, self.position = self.epoch + 1, 0
        self._restored = True
        self._use_stride(state["stride"])

    def _use_stride(self, stride: int) -> None:
        if stride != self._assembly.order.stride:
            self._assembly, self._reader = self._assembly.with_stride(stride), None

    # --- iteration

    def begin(self) -> bool:
        """What comes before each `for`: the rank, and with from_start the beginning. True if what is ready is of no use now."""
        changed = self.adopt_rank()
        if self.from_start and self.position:
            self.position, changed = 0, True
        return changed

    def __iter__(self) -> Iterator[Batch]:
        self.begin()
        self._assembly.cache.stop.begin()
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        if worker and self._unfinished:  # of what this copy has read, nobody knows how much was taken
            self._end_epoch()
        self._unfinished = bool(worker)
        # In a worker the position counts rounds of all workers, so that a copy restored from it finds its own batches.
        start, turns = self.position, self.turns(first, step)
        for number in range(first, self.batches_left(start), step):
            batch, _ = self.reader.read(*next(turns))
            if worker:
                self.position = start + (number - first + step) * self.global_batch_size
            else:
                self.step_over_batch()
            yield batch
        if worker:
            self._unfinished = False
            self._end_epoch()

    def step_over_batch(self) -> None:
        """Count one batch as handed out. The last one of an epoch ends it at once: whoever counts asks for no more."""
        self.position += self.global_batch_size
        if not self.batches_left(self.position):
            self._end_epoch()

    def _end_epoch(self) -> None:
        self.epoch, self.position = self._after(self.epoch), 0

    def _after(self, epoch: int) -> int:
        return epoch if self.from_start else epoch + 1

    def turns(self, first: int = 0, step: int = 1) -> Iterator[Turn]:
        """(epoch, positions) of the batches number first, first + step, ... of this rank, from here on without end."""
        epoch, start, number, rank = self.epoch, self.position, first, self._rank.known
        while True:
            while number >= (batches := self.batches_left(start)):
                epoch, start, number = self._after(epoch), 0, number - batches
            position = start + number * self.global_batch_size + rank * self.batch_size
            yield epoch, np.arange(position, position + self.batch_size, dtype=np.int64)
            number += step

    @property
    def reader(self) -> BatchReader:
        """Made in the process that uses it: open files and locks do not cross over."""
        if self._reader is None or self._reader[0] != os.getpid():
            made, settings = self._assembly, self._settings
            reader = BatchReader(
                made.sources, made.order, made.select, made.draw, settings.on_error, settings.pin_memory, made.cache,
                made.chosen,
            )  # fmt: skip
            self._reader = os.getpid(), reader
            made.cache.stop.begin()
        return self._reader[1]

    def fetch_ahead(self, first: int = 0, step: int = 1) -> FetchAhead | None:
        """Begin to fetch what the batches number first, first + step, ... need, one window ahead. None if all is local."""
        if not (made := self._assembly).remote:
            return None
        made.cache.stop.begin()
        steps = -(-made.order.window * len(made.order.groups) // (made.order.stride * made.order.unit))
        distance, processes = steps // step + 1, step * processes_here(self._rank.world_size)
        return FetchAhead(self.reader, self.turns(first, step), distance, processes)

    def stop_fetching(self) -> None:
        """Let those who wait for remote shards wait no longer."""
        self._assembly.cache.stop.set()

    def being_fetched(self) -> list[str]:
        """Files that this process is fetching now."""
        return sorted(self._assembly.cache.busy)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_rank": self._present(), "_pickled": True}
