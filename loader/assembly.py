"""What the options make of the shards at some paths: their sources, the order of samples, what is read of each and drawn.

Opening reads manifests and nothing else, however many shards there are; tars without one are scanned.
"""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loader.cache import Cache, cache_folder
from loader.captions import CaptionChoice
from loader.condition import Condition, select_samples
from loader.draw import Draw
from loader.folders import Files
from loader.format import NULL_CAPTION, Field, FormatError
from loader.joined import Source, open_dataset
from loader.members import Array
from loader.npy import bits16
from loader.null_caption import read_null_caption
from loader.options import Layered, Path_, Paths, Settings
from loader.order import I64, Order, bucketed, mixture
from loader.proportions import integer_weights
from loader.remote import open_files
from loader.select import (
    Selection,
    check_alike,
    encoder_of,
    find_flipped,
    select_features,
    select_flipped,
    select_further,
    select_image,
    select_pooled,
    select_text,
)
from loader.select_columns import columns_to_read
from loader.state import PathShards, ShardSet
from loader.tar_source import TarSource

log = logging.getLogger("loader")


@dataclass(frozen=True)
class Assembly:
    """sources: each with the number of its first shard in the order. order: as it is without a state.
    shards: which ones, for the state. cache: of remote ones.

    chosen: for each shard of the order the numbers of the samples that are read; None: all.
    """

    sources: Sequence[tuple[int, Source]]
    order: Order
    select: Selection
    draw: Draw
    cache: Cache
    shards: ShardSet
    chosen: Sequence[I64] | None

    @property
    def remote(self) -> bool:
        """Whether any shards come over a network."""
        return any(source.remote for _, source in self.sources)


def assemble(paths: Paths, settings: Settings, world_size: int) -> Assembly:
    """Raises ValueError for an option that does not fit the shards, FormatError for an unreadable manifest."""
    listed = [paths] if isinstance(paths, str | os.PathLike | tuple) else list(paths)
    folder = cache_folder(settings.cache_dir)
    cache = Cache(folder, settings.cache_limit)
    opened = [_open(path, cache, folder, settings) for path in listed]
    select = _select(opened, settings)
    sources = [source.reading(select.members) for source in opened]
    chosen = None
    if settings.condition:
        parts = [
            select_samples(s, settings.condition, folder, select.members, select.columns) for s in sources
        ]
        chosen = [samples for part in parts for samples in part]
        counts = [np.array([len(samples) for samples in part], np.int64) for part in parts]
        _check_chosen(counts, settings.condition)
    else:
        counts = [source.samples(select.members, select.columns) for source in sources]
        if not any(count.any() for count in counts):
            urls = [source.files.url for source in sources]
            cure = f"`latentmill verify {shlex.quote(urls[0])}` says what is"
            raise ValueError(f"{', '.join(urls)}: no sample there; {cure}")
    _check_cache(sources, counts, settings)
    firsts = np.cumsum([0, *(len(count) for count in counts)]).tolist()
    return Assembly(
        list(zip(firsts, sources, strict=False)),
        _order(sources, counts, select, settings, world_size),
        select,
        _draw(sources[0], select, settings),
        cache,
        ShardSet(
            [
                PathShards(s.files.url, s.fingerprint + settings.condition.identity, s.names, c.tolist())
                for s, c in zip(sources, counts, strict=True)
            ]
        ),
        chosen,
    )


def _open(path: Path_ | Layered, cache: Cache, folder: Path, settings: Settings) -> Source:
    """The dataset at a path, or at the paths of a folder and its layers."""
    files = [
        open_files(one, cache, settings.patience, settings.storage_options)
        for one in (path if isinstance(path, tuple) else (path,))
    ]
    return open_dataset(files[0], settings.split, folder, files[1:])


def stride_of(settings: Settings, unit: int, world_size: int) -> int:
    """Units in turn that go to each partition: those of its ranks."""
    return settings.batch_size * world_size // settings.partitions // unit


def _select(sources: Sequence[Source], settings: Settings) -> Selection:
    images = [select_image(s, settings.resolution, settings.scale, settings.shift) for s in sources]
    mirrored = [find_flipped(s, image) for s, image in zip(sources, images, strict=True)]
    flip = settings.flip_prob
    if flip is None and any(mirrored) and not all(mirrored):
        without = sources[mirrored.index(None)].files.url
        log.warning("%s has no mirrored fields, other paths have: nothing is flipped", without)
    flip = float(flip is None and all(mirrored)) if flip is None else flip
    selections = [
        Selection(
            image,
            select_flipped(source, image) if flip else None,
            select_text(source, settings.encoders),
            select_pooled(source, settings.encoders, settings.pooled),
            settings.words,
            settings.caption_tokens,
            select_features(source, settings.feature_names, flip),
        )
        for source, image in zip(sources, images, strict=True)
    ]
    check_alike(sources, selections, settings.may_differ)
    select = replace(selections[0], further=_further(sources, selections, settings))
    return replace(select, columns=columns_to_read(sources, select, settings.captions))


def _further(
    sources: Sequence[Source], selections: Sequence[Selection], settings: Settings
) -> tuple[str, ...]:
    """The kinds of captions that were added later, if they may be drawn."""
    if settings.captions == "first":
        return ()
    both = zip(sources, selections, strict=True)
    found = [select_further(source, (*select.text, *select.pooled)) for source, select in both]
    for source, kinds in zip(sources, found, strict=True):
        if kinds != found[0]:
            raise ValueError(
                f"captions: {sources[0].files.url} has captions of {list(found[0])} in layers, {source.files.url} of {list(kinds)}; "
                "name layers of the same captions with each, or none"
            )
    return found[0]


def _order(
    sources: Sequence[Source], counts: Sequence[I64], select: Selection, settings: Settings, world_size: int
) -> Order:
    options: dict[str, Any] = {
        "seed": settings.seed,
        "shuffle": settings.shuffle,
        "window": settings.shuffle_window,
        "partitions": settings.partitions,
    }
    weights = settings.weights
    if weights is not None and len(weights) != len(counts):
        raise ValueError(f"weights={list(weights)!r}: {len(counts)} paths need as many weights")
    if None in select.image.shape:
        options["stride"] = stride_of(settings, settings.batch_size, world_size)
        buckets = [bucket for source in sources for bucket in source.buckets]
        paths = [number for number, count in enumerate(counts) for _ in count]
        size, drop_last = settings.batch_size, settings.drop_last
        return bucketed(
            np.concatenate(counts), buckets, size, drop_last, paths=paths, weights=weights, **options
        )
    options["stride"] = stride_of(settings, 1, world_size)
    return mixture(counts, weights, **options)


def weights_of(settings: Settings, sources: int) -> tuple[int, ...]:
    """The integers that a mixture keeps to, for the state; (1,) where there is none."""
    return (1,) if settings.weights is None or sources == 1 else integer_weights(settings.weights)


def _draw(source: Source, select: Selection, settings: Settings) -> Draw:
    text = [*select.text, *select.pooled]
    encoders = {encoder_of(field) for field in text}
    chances = settings.caption_drop_prob
    if isinstance(chances, Mapping):
        if unknown := sorted(set(chances) - encoders):
            raise ValueError(
                f"caption_drop_prob={dict(chances)!r}: {unknown[0]!r} is not read; there are {sorted(encoders)}"
            )
        chances = {name: float(chances.get(name, 0.0)) for name in sorted(encoders)}
    dropping = any(chances.values()) if isinstance(chances, Mapping) else chances > 0
    null = _null_caption(source, text) if settings.dropped == "null" and dropping else {}
    flip = 0.5 if settings.flip_prob is None else settings.flip_prob
    choice = CaptionChoice(settings.captions, select.further)
    return Draw(settings.seed, settings.posterior, chances, flip, null, not settings.drop_last, choice)


def _null_caption(source: Source, text: Sequence[Field]) -> dict[str, Array]:
    """The empty caption's arrays by field name, in 16 bits a value."""
    return {field.name: _null_array(source.files_of(field), field) for field in text}


def _null_array(files: Files, field: Field) -> Array:
    where = f"{files.url}/{NULL_CAPTION}"
    cure = "the run that made the shards writes it; run it again on the folder, or give dropped='zeros'"
    try:
        return bits16(read_null_caption(files.read(NULL_CAPTION), [field])[field.name], field.dtype).copy()
    except FileNotFoundError:
        raise ValueError(f"dropped='null': there is no {where}; {cure}") from None
    except FormatError as error:
        raise ValueError(f"dropped='null': {where}: {error}; {cure}") from error


def _check_chosen(counts: Sequence[I64], condition: Condition) -> None:
    if not sum(int(count.sum()) for count in counts):
        raise ValueError(
            f"where={condition.where!r}, keys, subset={condition.subset!r}: no sample fulfils them; loosen one"
        )


def _check_cache(sources: Sequence[Source], counts: Sequence[I64], settings: Settings) -> None:
    """A cache that does not hold what a window reads would fetch the same shards over and over."""
    limit, window = settings.cache_limit, settings.shuffle_window
    need = sum(
        source.cache_needed(window, count)
        for source, count in zip(sources, counts, strict=True)
        if source.remote and not isinstance(source, TarSource)
    )
    if limit is not None and limit < need:
        raise ValueError(
            f"cache_limit={limit}: with shuffle_window={window} it takes {need} bytes to hold the shards of a window "
            "and the next one; raise cache_limit or lower shuffle_window"
        )
