"""THE shard contract in code: member names, dtypes, markers, manifest, fingerprint.

precompute writes through this module and loader reads through it; no other file knows how a member is named or laid
out. It touches no disk. Pixels become *raw latents*, stored as mean and std (`moments_R`); only on reading do they
become *latents*, `(raw - shift) * scale`, so that nothing random and no scale is frozen to disk.

    OUT/manifest.json        Manifest: recipe, fields, shards. A pure function of the markers
    OUT/train-00000.tar      the samples, plain WebDataset
    OUT/train-00000.parquet  `sidecar_schema`: one row per source row, and where each member lies in the tar
    OUT/train-00000.json     Marker: the unit is finished. Written last
"""

import ast
import functools
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FORMAT = 1
MANIFEST = "manifest.json"
NULL_CAPTION = "null_caption.npz"
KEY = re.compile(r"[A-Za-z0-9_-]+")
FOLDER = re.compile(r"([A-Za-z0-9_-]+/)*[A-Za-z0-9_-]+|")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*-\d{5,}(-\d{2,})?")

Kind = Literal["moments", "latents", "caption_latents", "caption_pooled"]


class FormatError(ValueError):
    """A manifest, marker, sidecar or member that breaks the contract above, or is of a newer one."""


# --- fields -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One array member of every sample: `KEY.{name}.npy`.

    shape: of one sample, channels first; None where it varies from sample to sample (a trimmed token axis).
    scale, shift: `latents = (raw - shift) * scale`; one number, or one per channel. Only `moments` fields have them;
        a `latents` field is scaled already.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int | None, ...]
    scale: float | tuple[float, ...] | None = None
    shift: float | tuple[float, ...] | None = None

    @property
    def member(self) -> str:
        return f"{self.name}.npy"

    @classmethod
    def from_json(cls, obj: dict[str, Any]) -> Self:
        def number(value: Any) -> Any:
            return tuple(value) if isinstance(value, list) else value

        return cls(
            name=obj["name"],
            kind=obj["kind"],
            dtype=obj["dtype"],
            shape=tuple(obj["shape"]),
            scale=number(obj.get("scale")),
            shift=number(obj.get("shift")),
        )


def image_field_name(kind: Literal["moments", "latents"], resolution: int, flipped: bool = False) -> str:
    """`moments_256`, `latents_512_flipped`: what the image encoder gives at one resolution (pixels, shorter edge)."""
    return f"{kind}_{resolution}" + ("_flipped" if flipped else "")


def text_field_name(kind: Literal["latents", "pooled"], encoder: str = "") -> str:
    """`caption_latents` of the first text encoder, `caption_latents_NAME` of one called NAME."""
    return f"caption_{kind}" + (f"_{encoder}" if encoder else "")


# --- members ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Header of a version 1.0, C-ordered, little-endian `.npy` file; its length is a multiple of 64 bytes."""
    out = io.BytesIO()
    descr = np.dtype(dtype).newbyteorder("<").str
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def npy_parts(array: npt.NDArray[Any]) -> tuple[bytes, memoryview]:
    """Header and data of a `.npy` file that `numpy.load(..., allow_pickle=False)` opens. Nothing is copied, if it is
    contiguous."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return npy_header(little.dtype.str, array.shape), little.reshape(-1).view(np.uint8).data


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    """The array as a `.npy` file, whole."""
    return b"".join(npy_parts(array))


@functools.lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    meta = ast.literal_eval(header.decode("latin1"))
    dtype, shape = np.dtype(meta["descr"]), meta["shape"]
    if dtype.hasobject or meta["fortran_order"] or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"dtype {dtype}, shape {shape}")
    return dtype, shape


def parse_npy(buffer: bytes | memoryview) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """dtype, shape and byte offset of the data in a `.npy` file, without unpickling or copying anything.

    Raises FormatError unless it is version 1.0, C-ordered, of a plain dtype, and exactly as long as its header says.
    """
    if bytes(buffer[:8]) != b"\x93NUMPY\x01\x00":
        raise FormatError("not a version 1.0 .npy file")
    start = 10 + int.from_bytes(buffer[8:10], "little")
    try:
        dtype, shape = _parse_npy_header(bytes(buffer[10:start]))
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise FormatError(f"unreadable .npy header: {error}") from error
    count = 1
    for n in shape:
        count *= n
    if len(buffer) != start + count * dtype.itemsize:
        raise FormatError(
            f".npy of {dtype} {shape} holds {len(buffer)} bytes, not {start + count * dtype.itemsize}"
        )
    return dtype, shape, start


def sidecar_schema(members: Sequence[str]) -> pa.Schema:
    """Columns of `train-00000.parquet`: one row per source row, in source order.

    status is "ok" or the reject reason; extras is a JSON object; `offset_M` and `size_M` (bytes) give the data of
    member M of an ok row in the tar, null in a rejected row. Members are named without their `.npy`.
    """
    columns = [("key", pa.string()), ("status", pa.string()), ("caption", pa.string()), ("width", pa.int32())]
    columns += [("height", pa.int32()), ("source", pa.string()), ("extras", pa.string())]
    for member in members:
        columns += [(f"offset_{member}", pa.int64()), (f"size_{member}", pa.int64())]
    return pa.schema(columns)


# --- recipe -----------------------------------------------------------------------------------------------------------


def fingerprint(recipe: dict[str, Any]) -> str:
    """sha256 of the recipe as canonical JSON: equal for equal values, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def as_json(value: Any) -> Any:
    """The value as it comes back from a file: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def recipe_differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """One line for each value that differs, as `image_encoder.weights: 'a1..' there, 'b2..' here`.

    Both are compared as JSON, for one of them comes from a file."""
    if not prefix:
        old, new = as_json(old), as_json(new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in sorted(old.keys() | new.keys()):
            lines += recipe_differences(
                old.get(name), new.get(name), f"{prefix}.{name}" if prefix else str(name)
            )
        return lines
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} here"]


# --- marker and manifest ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """One tar and its sidecar, `{name}.tar` and `{name}.parquet`. With no samples there is no tar, and no sha256.

    bucket: of aspect-ratio buckets the one that all samples are of, `1024x768` (width, height in pixels; one pair for each
        resolution, joined by `+`); else empty.
    folder: where both lie, below that of the manifest; empty: beside it. It is a matter of place: equal shards may lie in
        different ones.
    """

    name: str
    samples: int
    rows: int
    bytes: int
    sha256: str
    parquet_sha256: str
    bucket: str = ""
    folder: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not SHARD_NAME.fullmatch(self.name):
            raise FormatError(f"shard name {self.name!r} is not like 'train-00000' or 'train-00000-01'")
        if not FOLDER.fullmatch(self.folder):
            raise FormatError(f"shard {self.name}: its folder {self.folder!r} is not like 'train/0000'")
        for count in (self.samples, self.rows, self.bytes):
            if not isinstance(count, int) or count < 0:
                raise FormatError(f"shard {self.name}: {count!r} is no count")
        # They become the names of files in the loader's cache.
        for name, digest in (("sha256", self.sha256), ("parquet_sha256", self.parquet_sha256)):
            if not isinstance(digest, str) or (digest and not SHA256.fullmatch(digest)):
                raise FormatError(f"shard {self.name}: {name} {digest!r} is not 64 hexadecimal digits")

    @property
    def path(self) -> str:
        """Of both files, without their suffix, from the manifest's folder."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


@dataclass(frozen=True)
class Marker:
    """`train-00000.json`: unit 0 of split train is finished. It holds all that the manifest needs.

    plan: what the units are (dataset, number of units, limit, ...); equal in all markers of a split.
    rejected: source rows by reject reason; `rows == samples + sum(rejected.values())`.
    timings: seconds by stage, images/s: the only part that differs between two runs.
    """

    split: str
    unit: int
    recipe: dict[str, Any]
    fields: tuple[Field, ...]
    plan: dict[str, Any]
    shards: tuple[Shard, ...]
    rejected: dict[str, int] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def to_json(self) -> str:
        counts = {"samples": self.samples, "rows": self.rows, "fingerprint": fingerprint(self.recipe)}
        return json.dumps({**asdict(self), **counts}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises FormatError where the text is no marker, is of a newer format, or its counts contradict."""
        obj = _load(text, "marker")
        try:
            marker = cls(
                split=obj["split"],
                unit=obj["unit"],
                recipe=obj["recipe"],
                fields=tuple(Field.from_json(f) for f in obj["fields"]),
                plan=obj["plan"],
                shards=tuple(map(_finished_shard, obj["shards"])),
                rejected=obj["rejected"],
                timings=obj["timings"],
                format=obj["format"],
            )
            counts = {
                "samples": marker.samples,
                "rows": marker.rows,
                "fingerprint": fingerprint(marker.recipe),
            }
            wrong = [
                f"{name} {obj[name]!r} is not {value!r}"
                for name, value in counts.items()
                if obj[name] != value
            ]
            rejected = sum(marker.rejected.values())
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"not a marker: {error!r}") from error
        if marker.rows != marker.samples + rejected:
            wrong.append(f"{marker.samples} written + {rejected} rejected != {marker.rows} rows")
        if wrong:
            raise FormatError("marker contradicts itself: " + "; ".join(wrong))
        return marker


@dataclass(frozen=True)
class Split:
    """One split of a manifest. `units_done` of `plan["units"]` units are finished; shards in order of unit."""

    plan: dict[str, Any]
    units_done: int
    shards: tuple[Shard, ...]
    rejected: dict[str, int]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def complete(self) -> bool:
        return self.units_done == self.plan["units"]


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: the dataset as a whole, made of nothing but its markers (and, before the first, of a plan)."""

    recipe: dict[str, Any]
    fields: tuple[Field, ...]
    splits: dict[str, Split]
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    def field(self, name: str) -> Field:
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise FormatError(f"no field {name!r} in these shards; they have {[f.name for f in self.fields]}")

    def to_json(self) -> str:
        splits = {
            name: {"samples": s.samples, "rows": s.rows, "complete": s.complete, **asdict(s)}
            for name, s in sorted(self.splits.items())
        }
        head = {"format": self.format, "fingerprint": self.fingerprint, "recipe": self.recipe}
        return json.dumps({**head, "fields": [asdict(f) for f in self.fields], "splits": splits}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises FormatError where the text is no manifest, or one of a newer format."""
        obj = _load(text, "manifest")
        try:
            splits = {
                name: Split(
                    s["plan"], s["units_done"], tuple(map(_finished_shard, s["shards"])), s["rejected"]
                )
                for name, s in obj["splits"].items()
            }
            manifest = cls(
                obj["recipe"], tuple(Field.from_json(f) for f in obj["fields"]), splits, obj["format"]
            )
            recorded = obj["fingerprint"]
            for split in splits.values():
                _ = (
                    split.units_done > split.plan["units"],
                    sum(split.rejected.values()),
                )  # numbers, or TypeError
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"not a manifest: {error!r}") from error
        if manifest.fingerprint != recorded:
            raise FormatError(
                f"manifest of fingerprint {recorded!r} holds a recipe of {manifest.fingerprint!r}"
            )
        return manifest


def _finished_shard(obj: dict[str, Any]) -> Shard:
    """A shard that a marker or manifest lists: its files have hashes."""
    shard = Shard(**obj)
    for name, digest in (
        ("sha256", shard.sha256 or not shard.samples),
        ("parquet_sha256", shard.parquet_sha256),
    ):
        if not digest:
            raise FormatError(f"shard {shard.name}: {name} '' is not 64 hexadecimal digits")
    return shard


def _load(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        obj = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a {what}: {error}") from error
    if not isinstance(obj, dict) or not isinstance(obj.get("format"), int):
        raise FormatError(f"not a {what}: no format number")
    if obj["format"] > FORMAT:
        raise FormatError(
            f"{what} of format {obj['format']}: this latentmill reads up to {FORMAT}; update it"
        )
    return obj
