"""The numbers of the report: from the sidecars what every row is, from a spread of samples what the latents are."""

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import transformers
from PIL import Image

from builders.core.images import UndecodableImage, decode_rgb
from loader.format import Field, FormatError, Manifest, Marker
from loader.npy import stored_dtype
from loader.sidecar_schema import tokens_column
from precompute.encode.models import Location, recorded_name
from precompute.encode.text_spec import PADDINGS
from precompute.errors import PrecomputeError
from precompute.input.recorded_source import Where, open_recorded, tell_opened
from precompute.shards.sample_reader import Sample, iter_samples, per_channel, raw_latents
from precompute.shards.sidecar_table import read_sidecar_table
from precompute.shards.store import Store
from precompute.verification.source_check import find_records

MAX_ROWS = 1_000_000  # sidecar rows looked at, spread over the shards
MAX_SAMPLES, MAX_REMOTE = 4096, 512  # samples whose latents are read, spread over the shards
TWINS = 0.04  # of the bits of a perceptual hash; unrelated images differ in about half
EXAMPLES = 4  # thumbnails of each reject reason

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reject:
    """A source row that became no sample. thumbnail: JPEG, None where its image is not at hand or unreadable."""

    key: str
    thumbnail: bytes | None


@dataclass(frozen=True)
class RowFigures:
    """rows: sidecar rows looked at. edges: shorter edges, pixels. aspects: width / height. characters, tokens: lengths of
    captions, tokens by text field. repeated: captions of several samples, and of how many; twice: samples whose caption another
    has too. notes: what could not be had."""

    rows: int = 0
    edges: Array = field(default_factory=lambda: np.zeros(0))
    aspects: Array = field(default_factory=lambda: np.zeros(0))
    characters: Array = field(default_factory=lambda: np.zeros(0))
    tokens: dict[str, Array] = field(default_factory=dict)
    repeated: list[tuple[str, int]] = field(default_factory=list)
    twice: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LatentFigures:
    """latents_of: samples looked at. channels: (mean, std) of the scaled latents' channels by image field. twins: samples of nearly
    equal images, the nearest pairs; alike: how many pairs there are."""

    latents_of: int = 0
    channels: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    twins: list[tuple[Sample, Sample]] = field(default_factory=list)
    alike: int = 0


@dataclass(frozen=True)
class Figures(LatentFigures, RowFigures):
    """All of a split. units: finished, and in all. speed: images/s by unit. rejected: rows by reason; examples: some of them."""

    samples: int = 0
    bytes: int = 0
    units: tuple[int, int] = (0, 0)
    speed: list[float] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Reject]] = field(default_factory=dict)


def gather(store: Store, manifest: Manifest, markers: dict[str, Marker], split: str, where: Where) -> Figures:
    """Look at one split. What cannot be had becomes a note."""
    done = manifest.splits[split]
    mine = {stem: marker for stem, marker in markers.items() if marker.split == split}
    tables = list(_tables(store, mine))
    return Figures(
        **vars(describe_rows(tables, manifest)),
        **vars(_describe_latents(store, mine, split, manifest)),
        samples=done.samples,
        bytes=sum(shard.bytes for shard in done.shards),
        units=(done.units_done, done.plan["units"]),
        speed=[
            float(m.timings["images_per_second"]) for m in mine.values() if "images_per_second" in m.timings
        ],
        rejected=dict(done.rejected),
        examples=_find_rejects(tables, manifest, split, where),
    )


def _tables(store: Store, markers: dict[str, Marker]) -> Iterator[tuple[int, pa.Table]]:
    """(unit, sidecar) of shards spread over the split, up to MAX_ROWS rows. Unreadable ones are verify's to name."""
    shards = [(marker.unit, shard) for marker in markers.values() for shard in marker.shards]
    total = sum(shard.rows for _, shard in shards)
    for unit, shard in shards[:: max(1, -(-total // MAX_ROWS))]:
        try:
            yield unit, read_sidecar_table(store.read(f"{shard.name}.parquet"))
        except (OSError, FormatError):
            continue


# --- rows -------------------------------------------------------------------------------------------------------------


def describe_rows(tables: Sequence[tuple[int, pa.Table]], manifest: Manifest) -> RowFigures:
    """tables: (unit, sidecar)."""
    if not tables:
        return RowFigures()
    table = pa.concat_tables([table for _, table in tables], promote_options="default")
    good = table.filter(pa.compute.equal(table["status"], "ok"))
    width, height = (good[name].drop_null().to_numpy().astype(float) for name in ("width", "height"))
    known = len(width) == len(height)
    captions = [caption or "" for caption in good["caption"].to_pylist()]
    counts = Counter(captions)
    tokens, notes = dict[str, Array](), list[str]()
    for spec in manifest.fields:
        if spec.kind == "caption_latents" and spec.shape[0] is None:
            tokens[spec.name] = _stored_lengths(good, spec)
    for encoder in manifest.recipe.get("text_encoders", ()):
        if encoder.get("padding") in (PADDINGS["full"], PADDINGS["masked"]):
            name = f"caption_latents_{encoder['name']}" if encoder.get("name") else "caption_latents"
            if name in {spec.name for spec in manifest.fields}:
                try:
                    tokens[name] = _count_tokens(encoder, captions[:20_000])
                except (OSError, ValueError) as error:
                    notes.append(f"no token lengths of {name}: {str(error).splitlines()[0]}")
    return RowFigures(
        rows=table.num_rows,
        edges=np.minimum(width, height) if known else np.zeros(0),
        aspects=width / np.maximum(height, 1) if known else np.zeros(0),
        characters=np.array([len(caption) for caption in captions]),
        tokens=tokens,
        repeated=[(caption, count) for caption, count in counts.most_common(8) if count > 1],
        twice=sum(count for count in counts.values() if count > 1),
        notes=notes,
    )


def _stored_lengths(good: pa.Table, spec: Field) -> Array:
    """Tokens of each caption from the sidecar, of shards that have no such column from the size of the member."""
    if spec.captions > 1:
        return np.asarray(pa.compute.list_flatten(good[tokens_column(spec.name)]))
    assert spec.shape[1] is not None
    sizes = good[f"size_{spec.name}"].to_numpy()
    return (sizes - 128) // (spec.shape[1] * np.dtype(stored_dtype(spec.dtype)).itemsize)


def _count_tokens(spec: dict[str, Any], captions: Sequence[str]) -> Array:
    """Tokens of each caption. Raises OSError or ValueError where the tokenizer cannot be had."""
    tokenizer = open_tokenizer(spec)
    template, skip = spec.get("template", "{}"), spec.get("skip", 0)
    counts = [len(tokenizer(template.replace("{}", caption))) - skip for caption in captions]
    return np.array(counts)


def open_tokenizer(spec: dict[str, Any]) -> Any:
    """A function from caption to tokens, start and end included, uncut."""
    if spec["model"] == "toy":
        return lambda caption: b"<" + caption.encode() + b">"
    subfolder = str(spec.get("subfolder") or "").replace("text_encoder", "tokenizer")
    name = recorded_name(spec)
    if name is None or not spec.get("revision"):
        # What the Hub has under a folder's name is another's.
        raise ValueError(f"its model came from a folder, {spec['model']!r}")
    tell_opened(f"tokenizer of {name}")
    # Out of the Hub's cache: by its id a folder of that name in the working directory would be opened.
    place = Location(spec["model"], subfolder, spec["revision"], {}).tokenizer_place(subfolder)
    loaded = transformers.AutoTokenizer.from_pretrained(place, subfolder=subfolder, trust_remote_code=False)
    return lambda caption: loaded(caption).input_ids


# --- latents ----------------------------------------------------------------------------------------------------------


def _describe_latents(
    store: Store, markers: dict[str, Marker], split: str, manifest: Manifest
) -> LatentFigures:
    specs = [spec for spec in manifest.fields if spec.kind in ("moments", "latents")]
    if not specs:
        return LatentFigures()
    scale, shift = (per_channel(manifest.recipe["image_encoder"][name]) for name in ("scale", "shift"))
    sums: dict[str, list[Array]] = {spec.name: [] for spec in specs}
    seen, hashes = list[Sample](), []
    most = MAX_SAMPLES if store.local else MAX_REMOTE
    for sample in iter_samples(store, markers, split, most, [spec.name for spec in specs]):
        for spec in specs:
            latents = (raw_latents(spec, sample.arrays[spec.name], manifest.recipe) - shift) * scale
            sums[spec.name].append(np.stack([latents.mean((1, 2)), (latents**2).mean((1, 2))]))
            if spec is specs[0]:
                seen.append(dataclasses.replace(sample, arrays={spec.name: sample.arrays[spec.name]}))
                hashes.append(perceptual_hash(latents))
    channels: dict[str, list[tuple[float, float]]] = {}
    for name, parts in sums.items():
        if parts:
            mean, square = np.mean(parts, axis=0)
            std = np.sqrt(np.maximum(square - mean**2, 0))
            channels[name] = list(zip(mean.tolist(), std.tolist(), strict=True))
    pairs, alike = near_pairs(np.array(hashes)) if hashes else ([], 0)
    return LatentFigures(len(seen), channels, [(seen[a], seen[b]) for a, b in pairs], alike)


def perceptual_hash(latents: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Bits of an image's latents (C, h, w): which cells of an 8x8 grid are above their channel's median."""
    channels, height, width = latents.shape
    rows, columns = np.arange(8) * height // 8, np.arange(8) * width // 8
    grid = np.add.reduceat(np.add.reduceat(latents, rows, axis=1), columns, axis=2).reshape(channels, -1)
    return np.packbits(grid > np.median(grid, axis=1, keepdims=True))


def near_pairs(hashes: npt.NDArray[np.uint8], most: int = 12) -> tuple[list[tuple[int, int]], int]:
    """Pairs of rows (N, bytes) that differ in a small share of their bits, the nearest first, at most `most`; how many there are."""
    pairs, found = list[tuple[int, int, int]](), 0
    limit = TWINS * hashes.shape[1] * 8
    for row in range(len(hashes) - 1):
        distances = np.bitwise_count(hashes[row + 1 :] ^ hashes[row]).sum(1, dtype=np.int32)
        near = np.flatnonzero(distances <= limit)
        found += len(near)
        pairs = sorted([*pairs, *((int(distances[i]), row, row + 1 + int(i)) for i in near)])[:most]
    return [(a, b) for _, a, b in pairs], found


# --- rejects ----------------------------------------------------------------------------------------------------------


def _find_rejects(
    tables: Sequence[tuple[int, pa.Table]], manifest: Manifest, split: str, where: Where
) -> dict[str, list[Reject]]:
    """Some rejected rows of each reason."""
    wanted: dict[int, set[str]] = {}
    chosen: dict[str, list[str]] = {}
    for unit, table in tables:
        bad = table.filter(pa.compute.not_equal(table["status"], "ok"))
        for key, reason in zip(bad["key"].to_pylist(), bad["status"].to_pylist(), strict=True):
            if len(chosen.setdefault(reason, [])) < EXAMPLES:
                chosen[reason].append(key)
                wanted.setdefault(unit, set()).add(key)
    records = {}
    if wanted:
        try:
            records = find_records(open_recorded(manifest, split, where), wanted)
        except (PrecomputeError, OSError, IndexError):
            pass  # source_images has noted it
    return {
        reason: [Reject(key, _thumbnail(records[key].image if key in records else None)) for key in keys]
        for reason, keys in chosen.items()
    }


def _thumbnail(data: bytes | None) -> bytes | None:
    try:
        image = decode_rgb(data or b"", shorter_edge=120)
    except UndecodableImage:
        return None
    image.thumbnail((160, 160), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
