"""LatentDataset: batches of latents from one or several datasets, and the state that says how far one got.

Batches are cut from one global stream of samples (order.py) and dealt to ranks and workers, so the stream depends on neither.
"""

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from loader.batch import Batch, Draw
from loader.cache import Cache, cache_folder
from loader.order import bucketed, mixture
from loader.prefetch import FetchAhead
from loader.reader import BatchReader
from loader.remote import RemoteFolder, open_files
from loader.select import Scale, Selection, check_alike, select_flipped, select_image, select_text
from loader.source import ManifestSource, open_source

Path_ = str | os.PathLike[str]
State = dict[str, int]


class LatentDataset(IterableDataset[Batch]):
    """Yields the batches of this rank for the rest of the present epoch; iterate again for the next epoch.

    A batch is a dict. B: batch_size; T: tokens; D, P: widths of the text encoder; NAME: of the encoder, `_NAME` is left out of the
    unnamed one's.

        image_latents            (B, C, H, W) float16, scaled
        drop_caption_mask        (B,) float32, 0 where the caption was dropped
        caption_latents_NAME     (B, 1, T, D) float16, zeros where dropped and behind the last token
        caption_mask_NAME        (B, T) bool, True at real tokens; where their number varies
        caption_pooled_NAME      (B, P) float16, zeros where dropped; with pooled=True
        key, caption             lists of B str; with extras

    Use it through `make_loader`, or as `DataLoader(dataset, batch_size=None)`. Keep the latter away from
    `accelerator.prepare` with several processes: it would deal out a rank's batches a second time.

    paths: folders of shards, hf://datasets/USER/REPO[@REVISION][/FOLDER], https:// or what else fsspec opens. Their samples are one dataset, or a mixture where `weights` are given.
    batch_size: samples per rank and batch.
    weights: of each path in the mixture. Each path then has epochs of its own, and an epoch of the mixture is as long as
        all samples together. None: every sample of every path once an epoch.
    split: which split of the paths.
    may_differ: parts of the recipe (`seed`, `image_encoder.weights`) in which the paths may differ.
    resolution: pixels, shorter edge; may be left out where the shards have one only.
    text_encoders: names of those whose `caption_latents` are read, "" the unnamed first; None: all.
    pooled: read their `caption_pooled` as well.
    extras: "key", "caption" or both: lists of str in the batch.
    posterior: "sample": (mean + std * noise - shift) * scale; "mean": without noise. Of `moments` only.
    scale, shift: for moments in tars without a manifest; one number, or one per channel.
    caption_drop_prob: share of captions that are zero, and not read.
    flip_prob: share of images taken from the flipped field.
    caption_tokens: pad or cut text of varying length to so many tokens; None: pad to the longest of a batch.
    seed: of the order, the noise, the dropped captions and the flips.
    shuffle: order shards, and samples inside of windows, anew each epoch. False: as they lie in the shards.
    shuffle_window: samples; the window's shards are read from at the same time.
    partitions: as many as nodes, if each is to read its own part of remote shards only; divides the world size.
    drop_last: leave out what does not fill a batch on every rank. False: fill up from the epoch's beginning.
    on_error: "substitute" an unreadable sample by another of the same dataset, counted and logged, or "raise" DataError.
    rank, world_size: default to torch.distributed's, else to RANK and WORLD_SIZE, else to 0 and 1.
    cache_dir: remote shards, and the indexes of tars without a manifest; default $LATENTMILL_CACHE or ~/.cache/latentmill.
    cache_limit: bytes that remote shards may take there, for all processes of a machine; None: no limit.
    patience: seconds to keep trying to reach a remote shard, before it counts as unreadable.

    Raises ValueError for an argument that does not fit the shards, FormatError for an unreadable manifest.
    """

    def __init__(
        self,
        paths: Path_ | Sequence[Path_],
        batch_size: int,
        *,
        weights: Sequence[float] | None = None,
        split: str = "train",
        may_differ: Sequence[str] = ("dataset",),
        resolution: int | None = None,
        text_encoders: Sequence[str] | str | None = None,
        pooled: bool = False,
        extras: Sequence[Literal["key", "caption"]] | Literal["key", "caption"] = (),
        posterior: Literal["sample", "mean"] = "sample",
        scale: Scale | None = None,
        shift: Scale | None = None,
        caption_drop_prob: float = 0.0,
        flip_prob: float = 0.0,
        caption_tokens: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_window: int = 16384,
        partitions: int = 1,
        drop_last: bool = True,
        on_error: Literal["substitute", "raise"] = "substitute",
        rank: int | None = None,
        world_size: int | None = None,
        cache_dir: Path_ | None = None,
        cache_limit: int | None = None,
        patience: float = 900.0,
    ) -> None:
        text_encoders = [text_encoders] if isinstance(text_encoders, str) else text_encoders
        extras = (extras,) if isinstance(extras, str) else tuple(extras)
        _check(locals())
        self.batch_size, self.drop_last = batch_size, drop_last
        self.rank, self.world_size = _rank_and_world_size(rank, world_size)
        if partitions < 1 or self.world_size % partitions:
            raise ValueError(f"partitions={partitions} does not divide the world size, {self.world_size}")
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        folder = cache_folder(cache_dir)
        self.cache = Cache(folder, cache_limit)
        sources = [open_source(open_files(path, self.cache, patience), split, folder) for path in paths]
        self._remote = [
            s for s in sources if isinstance(s, ManifestSource) and isinstance(s.files, RemoteFolder)
        ]
        self._check_cache(cache_limit, shuffle_window)
        selections = [
            Selection(
                image := select_image(source, resolution, scale, shift),
                select_flipped(source, image) if flip_prob else None,
                select_text(source, text_encoders, "latents"),
                select_text(source, text_encoders, "pooled") if pooled else (),
                extras,
                caption_tokens,
            )
            for source in sources
        ]
        check_alike(sources, selections, may_differ)
        self._select = selections[0]
        self._draw = Draw(seed, posterior, caption_drop_prob, flip_prob)
        self._on_error: Literal["substitute", "raise"] = on_error
        counts = [source.samples(self._select.members, "caption" in extras) for source in sources]
        firsts = np.cumsum([0, *(len(count) for count in counts)]).tolist()
        self._sources = list(zip(firsts, sources, strict=False))
        self._shards_hash = _hash_of(
            [(s.fingerprint, *s.names, *c.tolist()) for s, c in zip(sources, counts, strict=True)]
        )
        options: dict[str, Any] = {
            "seed": seed,
            "shuffle": shuffle,
            "window": shuffle_window,
            "partitions": partitions,
        }
        if None in self._select.image.shape:
            if weights is not None:
                raise ValueError("weights: shards of several buckets cannot be mixed by weight")
            buckets = [bucket for source in sources for bucket in source.buckets]
            self._order = bucketed(np.concatenate(counts), buckets, batch_size, drop_last, **options)
        else:
            options["stride"] = batch_size * self.world_size // partitions
            self._order = mixture(counts, weights, **options)
        self.pin_memory = False
        self.epoch = self.position = 0
        self._reader: tuple[int, BatchReader] | None = None
        if not len(self):
            raise ValueError(
                f"batch_size={batch_size} on {self.world_size} ranks: {sum(int(c.sum()) for c in counts)} samples do not "
                "fill one batch each; lower it, or give drop_last=False"
            )

    @property
    def urls(self) -> list[str]:
        """Of the paths; hf:// ones with the commit they are pinned to."""
        return [source.files.url for _, source in self._sources]

    # --- length and position

    @property
    def num_samples(self) -> int:
        """Positions of an epoch: all samples of all paths."""
        return self._order.num_samples

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return self.batches_left(0)

    def batches_left(self, position: int) -> int:
        left = max(0, self.num_samples - position)
        return left // self.global_batch_size if self.drop_last else -(-left // self.global_batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`, unless it is the present one.

        Only a plain DataLoader with workers needs this: it makes new copies of the dataset, which know of no past, for each epoch.
        """
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> State:
        """Where the next batch begins, and the identity of the order; the same on every rank."""
        order = self._order
        identity = {"shards": self._shards_hash, "seed": order.seed, "window": order.window * order.shuffle}
        identity |= {"partitions": order.partitions, "unit": order.unit, "weights": _hash_of(order.weights)}
        return {"epoch": self.epoch, "position": self.position, "stride": order.stride, **identity}

    def load_state_dict(self, state: State) -> None:
        """Go on where `state` was taken, at any world size. Raises ValueError if the order of samples is another, or where it
        is no state at all."""
        here = self.state_dict()
        different = [
            f"{name}: {state.get(name)!r} there, {here[name]!r} here"
            for name in here
            if name not in ("epoch", "position", "stride") and state.get(name) != here[name]
        ]
        if different:
            raise ValueError(
                "load_state_dict: the state is of another order of samples; " + "; ".join(different)
            )
        for name in ("epoch", "position", "stride"):
            if not isinstance(number := state.get(name), int) or number < (name == "stride"):
                raise ValueError(
                    f"load_state_dict: {name}={number!r} is none; give what state_dict() returned"
                )
        self.epoch, self.position = state["epoch"], state["position"]
        if get_worker_info() is None and not self.batches_left(self.position):
            self.epoch, self.position = self.epoch + 1, 0
        if state["stride"] != self._order.stride:
            self._order, self._reader = replace(self._order, stride=state["stride"]), None

    # --- iteration

    def __iter__(self) -> Iterator[Batch]:
        self.cache.stop.clear()
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        # In a worker the position counts rounds of all workers, so that a copy restored from it finds its own batches.
        start, present = self.position, self.epoch
        for number, (epoch, positions) in enumerate(self.turns(first, step)):
            if epoch != present:
                break
            batch, _ = self.reader.read(epoch, positions)
            if worker:
                self.position = start + (number + 1) * step * self.global_batch_size
            else:
                self.step_over_batch()
            yield batch
        if worker:
            self.epoch, self.position = self.epoch + 1, 0

    def step_over_batch(self) -> None:
        """Count one batch as handed out. The last one of an epoch ends it at once: whoever counts asks for no more."""
        self.position += self.global_batch_size
        if not self.batches_left(self.position):
            self.epoch, self.position = self.epoch + 1, 0

    def turns(self, first: int = 0, step: int = 1) -> Iterator[tuple[int, "np.typing.NDArray[np.int64]"]]:
        """(epoch, positions) of the batches number first, first + step, ... of this rank, from here on without end."""
        epoch, start, number = self.epoch, self.position, first
        while True:
            while number >= (batches := self.batches_left(start)):
                epoch, start, number = epoch + 1, 0, number - batches
            position = start + number * self.global_batch_size + self.rank * self.batch_size
            yield epoch, np.arange(position, position + self.batch_size, dtype=np.int64)
            number += step

    @property
    def reader(self) -> BatchReader:
        """Made in the process that uses it: open files and locks do not cross over."""
        if self._reader is None or self._reader[0] != os.getpid():
            reader = BatchReader(
                self._sources,
                self._order,
                self._select,
                self._draw,
                self._on_error,
                self.pin_memory,
                self.cache,
            )
            self._reader = os.getpid(), reader
            self.cache.stop = threading.Event()
        return self._reader[1]

    def fetch_ahead(self, first: int = 0, step: int = 1) -> FetchAhead | None:
        """Begin to fetch what the batches number first, first + step, ... need, one window ahead. None if all is local."""
        if not self._remote:
            return None
        self.cache.stop = threading.Event()
        steps = -(-self._order.window * len(self._order.groups) // self._order.stride)
        return FetchAhead(self.reader, self.turns(first, step), steps // step + 1, self.cache.folder.parent)

    def _check_cache(self, limit: int | None, window: int) -> None:
        """A cache that does not hold what a window reads would fetch the same shards over and over."""
        need = sum((source.shards_at_once(window) + 1) * source.largest for source in self._remote)
        if limit is not None and limit < need:
            raise ValueError(
                f"cache_limit={limit}: with shuffle_window={window} it takes {need} bytes to hold the shards of a window "
                "and the next one; raise cache_limit or lower shuffle_window"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


def _check(arguments: dict[str, Any]) -> None:
    """The arguments that are wrong whatever the shards are."""
    fine = {
        "batch_size": arguments["batch_size"] >= 1,
        "shuffle_window": arguments["shuffle_window"] >= 1,
        "caption_drop_prob": 0 <= arguments["caption_drop_prob"] <= 1,
        "flip_prob": 0 <= arguments["flip_prob"] <= 1,
        "caption_tokens": arguments["caption_tokens"] is None or arguments["caption_tokens"] >= 1,
        "posterior": arguments["posterior"] in ("sample", "mean"),
        "on_error": arguments["on_error"] in ("substitute", "raise"),
        "extras": set(arguments["extras"]) <= {"key", "caption"},
    }
    for name, value in fine.items():
        if not value:
            raise ValueError(f"{name}={arguments[name]!r} is out of range")


def _rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank={rank}, world_size={world_size}: give both or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} is not below world_size={world_size}")
    return rank, world_size


def _hash_of(value: Any) -> int:
    """63 bits that fit a JSON number and a tensor."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big") >> 1
