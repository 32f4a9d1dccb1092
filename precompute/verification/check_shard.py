"""What can be wrong inside a shard: its sidecar, its tar, the values of its members. Pure functions, as those of check_folder.py."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from loader.field_names import further_kind
from loader.format import KEY, Field, FormatError, Shard, parse_npy
from loader.npy import as_numbers, stored_dtype
from loader.sidecar_schema import PHASH, described_columns, sidecar_schema, tokens_column
from precompute.shards.sidecar_table import read_sidecar_table
from precompute.shards.tars import BadTar, walk_tar
from precompute.verification.check_folder import OTHER_SIDECAR, Finding


class OkRow(NamedTuple):
    """An ok row, the `place`-th of them. places: member -> (offset of its data in the tar, size), in bytes.

    tokens: of each caption that is embedded, by column.
    """

    place: int
    caption: str
    places: dict[str, tuple[int, int]]
    tokens: dict[str, list[int]]


ValueCheck = Callable[[memoryview, OkRow | None], str]


@dataclass
class Sidecar:
    """What a sidecar says: the table itself, its ok rows by key, and how many rows of each status there are."""

    table: pa.Table
    rows: dict[str, OkRow] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)


def check_sidecar(
    shard: Shard, fields: Sequence[Field], data: bytes, cure: str, layer: bool = False
) -> tuple[Sidecar | None, list[Finding]]:
    """Parse `{shard}.parquet`, check it against the marker's entry and the key rules; None: it cannot be trusted.

    layer: a sample is its fields alone.
    """
    findings = list[Finding]()

    def wrong(what: str, key: str = "") -> None:
        findings.append(Finding(shard.name, key, what, cure))

    if hashlib.sha256(data).hexdigest() != shard.parquet_sha256:
        wrong(OTHER_SIDECAR)
        return None, findings
    members = [f.name for f in fields] + ([] if layer else ["txt", "json"])
    schema = sidecar_schema(members)
    try:
        table = read_sidecar_table(data)
    except FormatError as error:
        wrong(f"the .parquet: {error}")
        return None, findings
    have, whole = ({c.name: c.type for c in s} for s in (table.schema, schema))
    plain = {name: kind for name, kind in whole.items() if name not in described_columns(members)}
    # Sidecars that were made before there were these columns lack them.
    later = {
        PHASH,
        *(tokens_column(f.name) for f in fields if f.kind == "caption_pooled" and f.captions == 1),
    }
    known = {name: kind for name, kind in whole.items() if name in have or name not in later}
    if have != known and (have != plain or any(f.captions > 1 for f in fields)):
        wrong(f"the .parquet has columns {table.schema.names}, not {schema.names}")
        return None, findings
    sidecar = Sidecar(table)
    if table.num_rows != shard.rows:
        wrong(f"the .parquet has {table.num_rows} rows, its marker says {shard.rows}")
    columns = {name: table.column(name).to_pylist() for name in ("key", "status", "caption")}
    places = [
        list(zip(table.column(f"offset_{m}").to_pylist(), table.column(f"size_{m}").to_pylist(), strict=True))
        for m in members
    ]
    names = [
        name for name in described_columns(members) if name.startswith("caption_tokens") and name in have
    ]
    tokens = list(zip(*(table.column(name).to_pylist() for name in names), strict=True)) or [()] * len(table)
    sidecar.statuses.update(status or "" for status in columns["status"])
    for key, status, caption, lengths, *place in zip(*columns.values(), tokens, *places, strict=True):
        if status != "ok":
            continue
        if not key or not KEY.fullmatch(key):
            wrong("a key may only have letters, digits, _ and -", repr(key))
        elif key in sidecar.rows:
            wrong("the key occurs twice in the .parquet", key)
        if not caption:
            wrong("no caption in the .parquet", key or "")
        if any(offset is None or size is None for offset, size in place):
            wrong("the .parquet does not say where its members are", key or "")
        row = OkRow(
            len(sidecar.rows),
            caption or "",
            dict(zip(members, place, strict=True)),
            dict(zip(names, lengths, strict=True)),
        )
        sidecar.rows.setdefault(key or "", row)
    if sidecar.statuses["ok"] != shard.samples:
        wrong(f"the .parquet has {sidecar.statuses['ok']} samples, its marker says {shard.samples}")
    return sidecar, findings


def check_tar(
    shard: Shard,
    fields: Sequence[Field],
    sidecar: Sidecar | None,
    tar: BinaryIO,
    cure: str,
    may_be_empty: Collection[str] = (),
    layer: bool = False,
) -> Iterator[Finding]:
    """Every byte of a tar: its hash, every member's header, dtype, shape and values, and what the sidecar says.

    may_be_empty: names of fields that have no row for some captions. layer: a sample is its fields alone.
    """
    digest = hashlib.sha256()
    fine = True
    value_checks = _value_checks(fields, may_be_empty, layer)
    for key, what in _tar_faults(value_checks, sidecar, walk_tar(tar, digest.update)):
        fine = False
        yield Finding(shard.name, key, what, cure)
    if fine and digest.hexdigest() != shard.sha256:  # where something more exact was found, this adds nothing
        yield Finding(shard.name, "", "the .tar is not the one that was written (its sha256 differs)", cure)


def _tar_faults(
    checks: dict[str, ValueCheck],
    sidecar: Sidecar | None,
    members: Iterator[tuple[str, int, memoryview]],
) -> Iterator[tuple[str, str]]:
    """(key, what) of each fault."""
    current, found = "", dict[str, set[str]]()
    try:
        for name, offset, data in members:
            key, _, extension = name.partition(".")
            member = extension.removesuffix(".npy")
            if key != current and key in found:
                yield key, "the key occurs twice in the .tar"
            elif member in found.setdefault(key, set()):
                yield key, f"member {extension} occurs twice"
            current = key
            found[key].add(member)
            if extension not in checks:
                yield key, f"a foreign member {extension!r}"
                continue
            row = sidecar.rows.get(key) if sidecar else None
            if row and row.places[member] != (offset, len(data)):
                yield key, f"member {extension} is not where the .parquet says"
            fault = checks[extension](data, row)
            if fault:
                yield key, f"{extension} {fault}"
    except BadTar as error:
        yield current, f"the .tar {error}"
        return
    for key in found:
        missing = [e for e in checks if e.removesuffix(".npy") not in found[key]]
        if missing:
            yield key, f"member {', '.join(missing)} is missing"
    if sidecar is not None:
        yield from _membership(sidecar, found)


def _membership(sidecar: Sidecar, found: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    for key in sidecar.rows:
        if key not in found:
            yield key, "the .parquet lists a sample that is not in the .tar"
    for key in found:
        if key not in sidecar.rows:
            yield key, "the .tar holds a sample that the .parquet does not list"
    places = [sidecar.rows[key].place for key in found if key in sidecar.rows]
    if places != sorted(places):
        yield "", "the samples are not in the order of the .parquet"


# --- values -----------------------------------------------------------------------------------------------------------


def _value_checks(
    fields: Sequence[Field], may_be_empty: Collection[str], layer: bool
) -> dict[str, ValueCheck]:
    """Extension -> function of (data, row of the sidecar) that returns what is wrong with the data, or nothing.

    For one shard: its images are all of one shape, even where buckets leave open which.
    """
    images = ("moments", "latents", "features")
    checks: dict[str, ValueCheck] = {
        f.member: _array_check(f, f.kind in images, f.name in may_be_empty) for f in fields
    }
    return checks if layer else checks | {"txt": _text_fault, "json": _json_fault}


def _text_fault(data: memoryview, row: OkRow | None) -> str:
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8"
    if not text.strip():
        return "holds no caption"
    return "" if row is None or row.caption == text else "is not the caption that the .parquet has"


def _json_fault(data: memoryview, row: OkRow | None) -> str:
    try:
        return "" if isinstance(json.loads(bytes(data)), dict) else "is no JSON object"
    except (ValueError, RecursionError):
        return "is not JSON"


def _array_check(spec: Field, alike: bool, may_be_empty: bool) -> ValueCheck:
    wanted = np.dtype(stored_dtype(spec.dtype)).newbyteorder("<")
    seen: list[tuple[int, ...]] = []

    def fault(data: memoryview, row: OkRow | None) -> str:
        try:
            dtype, shape, start = parse_npy(data)
        except FormatError as error:
            return f"is broken: {error}"
        if dtype != wanted:
            return f"is {dtype}, not {wanted}"
        if len(shape) != len(spec.stored_shape) or any(
            want not in (None, have) for want, have in zip(spec.stored_shape, shape, strict=True)
        ):
            return f"has shape {shape}, not {tuple(n or 'any' for n in spec.stored_shape)}"
        if spec.captions > 1 and row and (wrong := _captions_fault(spec, shape[0], row)):
            return wrong
        seen[:] = seen or [shape]
        if alike and shape != seen[0]:
            return f"has shape {shape}, others of the shard {seen[0]}"
        if 0 in shape and (may_be_empty or further_kind(spec.name)):
            return ""
        return value_fault(np.frombuffer(data, dtype, offset=start).reshape(shape), spec)

    return fault


def _captions_fault(spec: Field, rows: int, row: OkRow) -> str:
    """What is wrong with how many captions, and tokens of each, lie in a member of so many rows."""
    tokens = row.tokens.get(tokens_column(spec.name)) or []
    fits = rows == (sum(tokens) if spec.kind == "caption_latents" else len(tokens))
    alike = spec.kind == "caption_pooled" or spec.shape[0] is None or set(tokens) == {spec.shape[0]}
    least = 0 if further_kind(spec.name) else 1
    alike = alike or not tokens
    if least <= len(tokens) <= spec.captions and min(tokens, default=1) > 0 and fits and alike:
        return ""
    return f"has {rows} rows, which are not those of captions of {tokens} tokens, as the .parquet says"


def value_fault(array: np.ndarray[Any, Any], spec: Field) -> str:
    """Values that no encoder gives: not finite, a standard deviation that is negative or nothing, one value everywhere, no token."""
    if not array.size:
        return "holds no token" if spec.kind == "caption_latents" else "is empty"
    array = as_numbers(array, spec.dtype)
    split = len(array) // 2 if spec.kind == "moments" else len(array)
    values, deviations = array[:split], array[split:]
    if fault := _not_finite(array, values, deviations):
        return fault
    first = values.reshape(-1)
    if first[0] == first[-1] and first.size > 1 and (first == first[0]).all():
        return f"has {first[0]:g} for every value{' of its mean' if spec.kind == 'moments' else ''}"
    images = spec.kind in ("moments", "latents")
    if images and array.dtype == np.float16 and np.bitwise_and(_bits(values), 0x7FFF).max() == 0x7BFF:
        return "has values at the end of float16: they were cut there"
    return "" if spec.kind != "moments" or deviations.any() else "has no standard deviation but 0"


def _not_finite(
    array: np.ndarray[Any, Any], values: np.ndarray[Any, Any], deviations: np.ndarray[Any, Any]
) -> str:
    # An exponent of ones is 0x7c00 in its bits, which are looked at 20 times as fast as by isfinite.
    if array.dtype == np.float16:
        good = np.bitwise_and(_bits(values), 0x7FFF).max(initial=0) < 0x7C00
        if good and _bits(deviations).max(initial=0) < 0x7C00:
            return ""
    bad = int(np.size(array) - np.count_nonzero(np.isfinite(array)))
    if bad:
        return f"has {bad} of {array.size} values that are not finite"
    return "has a negative standard deviation" if (deviations < 0).any() else ""


def _bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.view(np.uint16)
