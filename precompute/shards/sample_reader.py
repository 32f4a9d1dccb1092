"""Single samples out of shards, in place: by what the sidecar says, without reading the rest of the tar."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from loader.field_names import further_kind, further_name
from loader.format import Field, FormatError, Marker, Shard, parse_npy
from loader.npy import as_numbers
from loader.recipe import Recipe
from loader.sidecar_schema import tokens_column
from precompute.shards.sidecar_table import read_sidecar_table
from precompute.shards.store import Store

REQUEST = 32 << 20  # bytes asked of the Hub at once
REACH = 1000  # samples of a shard among which one looks: its source can only be read from the start


@dataclass(frozen=True)
class Sample:
    """arrays: by field name, as numbers that numpy knows. facts: the json member, with width, height, crop, source, extras.

    captions: those that are embedded, `caption` the first. tokens: of each of them, by text field; none of a field whose member is
    one caption's.
    """

    stem: str
    unit: int
    shard: str
    key: str
    caption: str
    arrays: dict[str, npt.NDArray[Any]]
    facts: dict[str, Any]
    captions: tuple[str, ...] = ()
    tokens: dict[str, list[int]] = field(default_factory=dict)

    def of_caption(self, field: Field, number: int) -> npt.NDArray[Any]:
        """What a text field holds of caption `number`: states (T, D), or the pooled vector."""
        array = self.arrays[field.name]
        if field.captions == 1:
            return array
        if field.kind == "caption_pooled":
            return np.asarray(array[number])
        ends = np.cumsum([0, *self.tokens[field.name]])
        return array[ends[number] : ends[number + 1]]


def spread(markers: dict[str, Marker], split: str, count: int) -> Iterator[tuple[str, Marker, Shard, int]]:
    """(stem, marker, shard, samples to take from it): `count` in all, over units that lie evenly apart."""
    units = [(stem, m) for stem, m in markers.items() if m.split == split and m.samples]
    if not units:
        return
    chosen = [units[i * len(units) // min(count, len(units))] for i in range(min(count, len(units)))]
    shares = [0] * len(chosen)
    for _ in range(min(count, sum(marker.samples for _, marker in chosen))):
        free = [i for i, (_, marker) in enumerate(chosen) if shares[i] < marker.samples]
        shares[min(free, key=shares.__getitem__)] += 1
    for (stem, marker), share in zip(chosen, shares, strict=True):
        for shard, taken in zip(marker.shards, taken_of(marker.shards, share), strict=True):
            if taken:
                yield stem, marker, shard, taken


def taken_of(shards: Sequence[Shard], share: int) -> list[int]:
    """Samples of each shard of a unit: of shards in source order from the first on, of shards by shape of each in turn."""
    taken = [0] * len(shards)
    for _ in range(min(share, sum(shard.samples for shard in shards))):
        free = [place for place, shard in enumerate(shards) if taken[place] < shard.samples]
        by_shape = any(shard.bucket for shard in shards)
        taken[min(free, key=taken.__getitem__) if by_shape else free[0]] += 1
    return taken


def iter_samples(
    store: Store, markers: dict[str, Marker], split: str, count: int, fields: Sequence[str] | None = None
) -> Iterator[Sample]:
    """Read up to `count` samples, spread over the split and the first REACH of a shard; only the arrays named in `fields`, by default all.

    What cannot be read is passed over: that is verify's to say.
    """
    for stem, marker, shard, share in spread(markers, split, count):
        specs = [field for field in marker.fields if fields is None or field.name in fields]
        try:
            table = read_sidecar_table(store.read(f"{shard.name}.parquet"))
            rows = [row for row in table.to_pylist() if row["status"] == "ok"][: max(share, REACH)]
            rows = [rows[place * len(rows) // share] for place in range(min(share, len(rows)))]
            for start, data, row in _read_rows(store, f"{shard.name}.tar", rows):
                yield _sample(stem, marker, shard, specs, row, start, data)
        except (OSError, KeyError, ValueError, TypeError, pa.ArrowException):
            continue


def pick_samples(store: Store, markers: dict[str, Marker], split: str, count: int) -> list[Sample]:
    """Read up to `count` whole samples, spread over the split."""
    return list(iter_samples(store, markers, split, count))


def _read_rows(
    store: Store, tar: str, rows: list[dict[str, Any]]
) -> Iterator[tuple[int, memoryview, dict[str, Any]]]:
    """(offset of the data, data, row): neighbours in one read, where a read is a request to the Hub."""
    most = 1 if store.local else REQUEST
    while rows:
        start, stop = _span(rows[0])
        chunk = list(itertools.takewhile(lambda row: _span(row)[1] - start <= max(most, stop - start), rows))  # noqa: B023
        rows = rows[len(chunk) :]
        data = memoryview(store.read(tar, start, _span(chunk[-1])[1]))
        for row in chunk:
            yield start, data, row


def _span(row: dict[str, Any]) -> tuple[int, int]:
    """Find where the members of a row lie in the tar: they are adjacent."""
    members = [name.removeprefix("offset_") for name in row if name.startswith("offset_")]
    starts = [row[f"offset_{name}"] for name in members]
    return min(starts), max(row[f"offset_{name}"] + row[f"size_{name}"] for name in members)


def _sample(
    stem: str,
    marker: Marker,
    shard: Shard,
    fields: Sequence[Field],
    row: dict[str, Any],
    start: int,
    data: memoryview,
) -> Sample:
    def member(name: str) -> memoryview:
        place = row[f"offset_{name}"] - start
        return data[place : place + row[f"size_{name}"]]

    arrays = {}
    for spec in fields:
        dtype, shape, offset = parse_npy(member(spec.name))
        if len(shape) != len(spec.stored_shape):
            raise FormatError(f"{row['key']}.{spec.member} has shape {shape}, not {spec.stored_shape}")
        array = np.frombuffer(member(spec.name), dtype, offset=offset).reshape(shape)
        arrays[spec.name] = as_numbers(array, spec.dtype)
    if "offset_json" in row:
        facts, caption = json.loads(bytes(member("json"))), str(member("txt"), "utf-8")
    else:  # of a layer
        crops = {name.removeprefix("crop_"): crop for name, crop in row.items() if name.startswith("crop_")}
        facts = {name: row[name] for name in ("width", "height", "source")} | {"crops": crops}
        facts |= {"crop": crops[max(crops, key=int)]} if crops else {}
        caption = row["caption"]
    kind = kind_of_text(fields)
    several = [s for s in fields if s.captions > 1 and further_kind(s.name) == kind]
    tokens = {spec.name: row[tokens_column(spec.name)] for spec in several}
    texts = row[further_name("captions", kind)] if tokens else ()
    captions = tuple(texts[: len(next(iter(tokens.values())))]) if tokens else (caption,)
    return Sample(stem, marker.unit, shard.name, row["key"], caption, arrays, facts, captions, tokens)


def kind_of_text(fields: Sequence[Field]) -> str:
    """The kind of captions that a sample's text fields are of: empty, but where all of them were added later."""
    kinds = [further_kind(field.name) for field in fields if field.kind.startswith("caption")]
    return "" if "" in kinds else next(iter(kinds), "")


def raw_latents(field: Field, array: npt.NDArray[Any], recipe: Recipe) -> npt.NDArray[np.float32]:
    """Raw latents (C, h, w), unscaled, of a stored image field: their mean where the moments are stored."""
    values = array.astype(np.float32)
    if field.kind == "moments":
        return values[: len(values) // 2]
    scale, shift = (per_channel(recipe["image_encoder"][name]) for name in ("scale", "shift"))
    return values / scale + shift


def per_channel(value: Any) -> npt.NDArray[np.float32]:
    """One number, or one per channel, to be applied to (C, h, w)."""
    return np.asarray(value, np.float32).reshape(-1, 1, 1)
