"""A folder of shards and the layers beside it as one dataset: the fields of all, of the samples that are whole in all.

A layer has a shard for each of the base's, in their order, and in each the same rows in the same order; so a sample is the same row
of each. Their names are the base's too, but where a store had another file of that name already.
"""

import copy
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loader.field_names import picture_place
from loader.folders import Files, LocalFolder
from loader.format import MANIFEST, Field, FormatError, Manifest, Shard
from loader.printable import printable
from loader.recipe import BASE, Recipe, joined_recipe
from loader.sidecar import I64, Table
from loader.sidecar_schema import described_columns
from loader.source import ManifestSource, OpenShard
from loader.state import unit_of
from loader.tar_source import TarSource

log = logging.getLogger("loader")

THREADS = 8


class JoinedSource:
    """Shards as precompute writes them, and their layers. The first part is the base, which says all but the fields.

    Raises ValueError where the parts do not belong together.
    """

    def __init__(self, parts: Sequence[ManifestSource | TarSource]) -> None:
        base, *layers = _checked(parts)
        self.parts: list[ManifestSource] = [base, *layers]
        self._used = self.parts
        self.files, self.names, self.paths, self.buckets = base.files, base.names, base.paths, base.buckets
        self.shapes = [
            "+".join(filter(None, all_of)) for all_of in zip(*(p.buckets for p in self.parts), strict=True)
        ]
        self.recipe = joined_recipe(base.recipe, [layer.recipe for layer in layers])
        _check_further(self.parts, self.recipe)
        self.fingerprint = "+".join(part.fingerprint for part in self.parts)
        self.sidecars = [
            " ".join(hashes) for hashes in zip(*(part.sidecars for part in self.parts), strict=True)
        ]
        self.fields = tuple(field for part in self.parts for field in part.fields)
        self.caption_kinds = {name: n for part in self.parts for name, n in part.caption_kinds.items()}
        self._counts: I64 | None = None

    @property
    def remote(self) -> bool:
        """Whether any of the tars that are read come over a network."""
        return any(part.remote for part in self._used)

    @property
    def tars(self) -> int:
        """Files that are open for one shard."""
        return len(self._used)

    def reading(self, members: Sequence[str]) -> "JoinedSource":
        """The same, of which only these members are read: the tars of a part that has none of them are let be."""
        narrowed = copy.copy(self)
        narrowed._use(members)
        return narrowed

    def _use(self, members: Sequence[str]) -> None:
        self._used = [part for part in self.parts if _own(part, members)]

    def files_of(self, field: Field) -> Files:
        """The folder that has a field."""
        return next(part.files for part in self.parts if _own(part, [field.name]))

    def samples(self, members: Sequence[str], columns: Sequence[str]) -> I64:
        """Number of samples of each shard that are whole in all parts.

        A layer's samples are samples of the base. So the manifests tell it, but where several layers lack some of one shard.
        """
        if self._counts is None:
            counts = np.array([part.samples(members, columns) for part in self.parts]).reshape(
                len(self.parts), -1
            )
            fewest = counts.min(axis=0)
            unsure = np.flatnonzero(((counts < counts[0]).sum(axis=0) > 1) & (fewest > 0)).tolist()
            with ThreadPoolExecutor(THREADS) as pool:
                fewest[unsure] = list(pool.map(lambda number: len(self._join(number, [], [])), unsure))
            self._counts = fewest
        return self._counts

    def open(
        self, number: int, members: Sequence[str], columns: Sequence[str], table: Table | None = None
    ) -> OpenShard:
        """table: that an earlier opening gave, and need not be read again. Raises OSError or FormatError."""
        if table is None:
            table = self._join(number, members, columns)
            if len(table) != self.samples(members, columns)[number]:
                raise FormatError(f"{self.names[number]}: a layer has samples that the base has not")
        tars: dict[str, int] = {}
        try:
            for part in self._used:
                tars |= dict.fromkeys(_own(part, members), part.open_tar(number))
        except BaseException:
            for descriptor in set(tars.values()):
                os.close(descriptor)
            raise
        return OpenShard(tars, table)

    def ok_rows(self, number: int, columns: Sequence[str]) -> Any:
        """Columns of the samples of a shard, from the base's sidecar; `status` has to be one, and is dropped.

        Raises OSError, or FormatError where a sidecar is damaged.
        """
        base = self.parts[0]
        rows = base.ok_rows(number, columns)
        if all(part.shards[number].samples == base.shards[number].samples for part in self.parts):
            return rows
        whole = self._join(number, [], []).rows
        return rows.take(np.searchsorted(base.read_table(number, [], []).rows, whole))

    def cached_as(self, number: int) -> list[str]:
        """Names of its tars in the cache; none where they are local."""
        return [name for part in self._used for name in part.cached_as(number)]

    def cache_needed(self, window: int, samples: I64) -> int:
        """Bytes that hold a window's shards and the one after them, with their sidecars."""
        return sum(part.cache_needed(window, samples) for part in self._used if part.remote)

    def reserve(self, number: int) -> bool:
        """Take the room for its tars; False where there is none now. Raises OSError or FormatError."""
        return all(part.reserve(number) for part in self._used)

    def prefetch(self, number: int) -> bool:
        """Make opening it fast; False where there is no room for it now. Raises OSError or FormatError."""
        fetched = [part.prefetch(number) for part in self._used]
        return all(fetched)

    def discard(self, number: int) -> bool:
        """Forget local copies of a damaged shard; True if opening it again may give a better one."""
        gone = [part.discard(number) for part in self.parts]
        return any(gone)

    def _columns_of(self, part: ManifestSource, columns: Sequence[str]) -> list[str]:
        """Those of the columns that are read from a part: what they say of a field from the one that has it, the others of the base."""
        described = [described_columns([field.name for field in one.fields]) for one in self.parts]
        owner = {name: next((n for n, known in enumerate(described) if name in known), 0) for name in columns}
        return [name for name in columns if self.parts[owner[name]] is part]

    def _join(self, number: int, members: Sequence[str], columns: Sequence[str]) -> Table:
        """The samples of a shard that are whole in all parts."""
        try:
            tables = [
                part.read_table(number, _own(part, members), self._columns_of(part, columns))
                for part in self.parts
            ]
        except FileNotFoundError as error:
            raise FormatError(
                f"{self.names[number]}.parquet is missing ({printable(error)}); layers are joined by it"
            ) from error
        base, rows = tables[0], tables[0].rows
        for part, table in zip(self.parts[1:], tables[1:], strict=True):
            if not table.keys.equals(base.keys):
                raise FormatError(f"{part.files.url}: {self.names[number]} has other rows than the base")
            rows = np.intersect1d(rows, table.rows, assume_unique=True)
        whole = base.only(np.searchsorted(base.rows, rows))
        for table in tables[1:]:
            mine = table.only(np.searchsorted(table.rows, rows))
            whole = replace(
                whole,
                offset=whole.offset | mine.offset,
                size=whole.size | mine.size,
                columns={**whole.columns, **mine.columns},
            )
        return whole


Source = ManifestSource | TarSource | JoinedSource


def open_dataset(files: Files, split: str, cache: Path, layers: Sequence[Files] = ()) -> Source:
    """The shards of a folder, or of a folder and the layers beside it.

    Reads manifests and nothing else, however many shards there are; foreign tars, with no manifest, are scanned instead. Raises
    FormatError for an unreadable manifest, ValueError for an unknown split, a folder without shards and layers of another one.
    """
    base = _open_folder(files, split, cache)
    return JoinedSource([base, *(_open_folder(one, split, cache) for one in layers)]) if layers else base


def _open_folder(files: Files, split: str, cache: Path) -> ManifestSource | TarSource:
    try:
        manifest = Manifest.from_json(files.read(MANIFEST))
    except FileNotFoundError:
        if isinstance(files, LocalFolder):
            return TarSource(files, cache)
        raise ValueError(f"{files.url} has no {MANIFEST}: a remote dataset needs one") from None
    except FormatError as error:
        raise FormatError(f"{files.url}/{MANIFEST}: {error}") from error
    if split not in manifest.splits:
        raise ValueError(f"split={split!r} is not in {files.url}, which has {sorted(manifest.splits)}")
    return ManifestSource(files, manifest, split)


def rows_hash(shards: Iterable[Shard]) -> str:
    """What a layer knows its base's rows by: the names, counts and sidecars of a split's shards, in order of unit."""
    told = [[shard.name, shard.samples, shard.rows, shard.parquet_sha256] for shard in shards]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _own(part: ManifestSource, members: Sequence[str]) -> list[str]:
    """Those of the members that a part has."""
    names = {field.name for field in part.fields}
    return [member for member in members if member in names]


def _checked(parts: Sequence[ManifestSource | TarSource]) -> list[ManifestSource]:
    """The parts, once it is certain that the first is the base of the others. Raises ValueError."""
    known: list[ManifestSource] = []
    for part in parts:
        if isinstance(part, TarSource):
            raise ValueError(
                f"{part.files.url} has no manifest.json, so nothing lies beside it and it lies beside nothing"
            )
        known.append(part)
    base, *layers = known
    if BASE in base.recipe:
        raise ValueError(
            f"{base.files.url} is a layer: name what it was made beside first, as in (base, layer)"
        )
    owner = {picture_place(field.name): base for field in base.fields}
    for layer in layers:
        _check_layer(base, layer)
        for field in layer.fields:
            other = owner.setdefault(picture_place(field.name), layer)
            if other is not layer:
                raise ValueError(
                    f"{other.files.url} and {layer.files.url} both have {field.name}; leave one of them out"
                )
    return known


def _check_further(parts: Sequence[ManifestSource], recipe: Recipe) -> None:
    """Raises ValueError where captions that were added later are of another encoder than the first ones, or of two files."""
    fields = {field.name: field for part in parts for field in part.fields}
    for part in parts:
        for field in part.fields:
            first = fields.get(field.name.partition("+")[0])
            if first is not None and (first.dtype, first.shape) != (field.dtype, field.shape):
                raise ValueError(
                    f"{part.files.url}: {field.name} is {field.dtype} of shape {field.shape}, and {first.name} {first.dtype} of "
                    f"{first.shape}; make it with the text encoder and the --store of the shards that it lies beside"
                )
    names = [str(spec.get("name") or "") for spec in recipe.get("text_encoders") or []]
    kinds = [str(captions.get("kind")) for captions in recipe.get("captions") or []]
    for what, found in (("text encoder", names), ("file of captions", kinds)):
        if again := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
            raise ValueError(
                f"{parts[0].files.url} and its layers: there are two of the {what} {printable(again[0])!r}, of different recipes; "
                "leave one of the layers out, or make it like the other"
            )


def _rows_of(source: ManifestSource) -> list[tuple[int, int]]:
    """(unit, rows) of each shard, in order."""
    return [(unit_of(shard.name), shard.rows) for shard in source.shards]


def _check_layer(base: ManifestSource, layer: ManifestSource) -> None:
    named, beside = layer.files.url, layer.plan.get(BASE)
    if BASE not in layer.recipe or not isinstance(beside, dict):
        raise ValueError(f"{named} is no layer; make it by a run with --beside {base.files.url}")
    if layer.recipe["base"] != base.fingerprint:
        raise ValueError(
            f"{named} is a layer of other shards (fingerprint {printable(str(layer.recipe['base'])[:12])}) than {base.files.url} "
            f"({base.fingerprint[:12]}); join it to those, or make one beside these"
        )
    if beside.get("rows") != rows_hash(base.shards):
        raise ValueError(
            f"{base.files.url} has changed since the layer {named} was made; make the layer again, with another --output"
        )
    if layer.missing:
        raise ValueError(
            f"{named} lacks {layer.missing} of {layer.plan['units']} units; run the command that makes it again, "
            "which finishes it"
        )
    if _rows_of(layer) != _rows_of(base):
        raise ValueError(
            f"{named} has not the shards of {base.files.url}; verify it with --beside {base.files.url}"
        )
