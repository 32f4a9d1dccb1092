"""Where each member of each sample lies in its tar: from the parquet sidecar, or else from the tar's own headers.

A table is read when the first sample of its shard is. Tars without a sidecar are scanned once, header by header, and the
result is kept in the cache folder under their path, size and time of change.
"""

import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from loader.format import FormatError

I64 = npt.NDArray[np.int64]

log = logging.getLogger("loader")

SAMPLE = re.compile(
    r"((?:.*/)?[^./]+)\.([^/]+)"
)  # WebDataset's rule: the key ends at the first dot of the file name


@dataclass(frozen=True)
class Table:
    """The samples of one shard. offset, size: of member M of each, in bytes. keys, captions: of all rows, as Arrow columns.

    rows: which rows the samples are.
    """

    offset: dict[str, I64]
    size: dict[str, I64]
    rows: I64
    keys: Any
    captions: Any = None

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, sample: int) -> str:
        return str(self.keys[int(self.rows[sample])])

    def caption(self, sample: int) -> str | None:
        """None where the tar itself has it."""
        return None if self.captions is None else str(self.captions[int(self.rows[sample])])


def read_sidecar(file: Any, members: Sequence[str], captions: bool) -> Table:
    """The ok rows of a sidecar. Raises FormatError where it lacks the members."""
    with pq.ParquetFile(file) as parquet:
        columns = ["status", "key"] + ["caption"] * captions
        columns += [f"{what}_{m}" for m in members for what in ("offset", "size")]
        missing = set(columns) - set(parquet.schema_arrow.names)
        if missing:
            raise FormatError(f"the sidecar has no column {sorted(missing)}")
        rows = parquet.read(columns, use_threads=False)
    ok = np.flatnonzero([status == "ok" for status in rows["status"].to_pylist()])
    places = {
        column: _integers(rows[column])[ok] for column in columns if column.startswith(("offset_", "size_"))
    }
    for column, values in places.items():
        if values.min(initial=0) < 0:
            raise FormatError(f"the sidecar has an ok row without {column}")
    return Table(
        offset={m: places[f"offset_{m}"] for m in members},
        size={m: places[f"size_{m}"] for m in members},
        rows=ok,
        keys=rows["key"],
        captions=rows["caption"] if captions else None,
    )


def _integers(column: Any) -> I64:
    """Values of an int64 column, -1 for null. Arrow's own way imports pandas, a tenth of a second before the first batch."""
    out = []
    for chunk in column.chunks:
        valid, values = chunk.buffers()
        numbers = np.frombuffer(values, np.int64, len(chunk), 8 * chunk.offset)
        if valid is not None:
            bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
            numbers = np.where(bits[chunk.offset : chunk.offset + len(chunk)], numbers, -1)
        out.append(numbers)
    return np.concatenate([np.empty(0, np.int64), *out])


# --- tars without a sidecar -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scan:
    """What the headers of a tar say. offset, size: of each member by key number; -1 where the sample lacks it."""

    keys: npt.NDArray[np.str_]
    offset: dict[str, I64]
    size: dict[str, I64]

    def table(self, members: Sequence[str], captions: bool) -> Table:
        """The samples that have all of `members`, and a caption if asked for; others are not whole, and not there."""
        names = [*members, "txt"] if captions else members
        lacking = np.full(len(self.keys), -1)
        places = {name: self.offset.get(name, lacking) for name in names}
        whole = np.all([offset >= 0 for offset in places.values()], axis=0)
        return Table(
            offset={name: offset[whole] for name, offset in places.items()},
            size={name: self.size.get(name, lacking)[whole] for name in names},
            rows=np.flatnonzero(whole),
            keys=self.keys,
        )


def scan(file: BinaryIO, size: int) -> Scan:
    """Read the headers of a tar. What lies beyond a truncation is left out. Raises FormatError for a doubled member."""
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                match = SAMPLE.fullmatch(info.name)
                if not match or not info.isreg() or info.offset_data + info.size > size:
                    continue
                members = rows.setdefault(match[1], {})
                name = match[2].removesuffix(".npy")
                if name in members:
                    raise FormatError(f"two members {info.name!r}")
                members[name] = info.offset_data, info.size
    except tarfile.TarError as error:
        if not rows:
            raise FormatError(f"not a tar: {error}") from error
        log.warning("%s: %s; the %d samples before it stay", file.name, error, len(rows))
    names = sorted({name for members in rows.values() for name in members})
    places = {
        n: np.array([m.get(n, (-1, -1)) for m in rows.values()], np.int64).reshape(-1, 2) for n in names
    }
    keys = np.array(list(rows), np.str_)
    return Scan(keys, {n: p[:, 0] for n, p in places.items()}, {n: p[:, 1] for n, p in places.items()})


def scan_cached(path: Path, cache: Path) -> Scan:
    """`scan`, remembered in the cache folder for as long as the tar's size and time of change stay."""
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}".encode()
    kept = cache / "index" / f"{hashlib.sha256(identity).hexdigest()}.npz"
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            names = [name.removeprefix("offset ") for name in arrays.files if name.startswith("offset ")]
            return Scan(
                arrays["keys"],
                {n: arrays[f"offset {n}"] for n in names},
                {n: arrays[f"size {n}"] for n in names},
            )
    except FileNotFoundError:
        pass
    try:
        with path.open("rb") as file:
            found = scan(file, status.st_size)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    arrays = {"keys": found.keys}
    arrays |= {f"offset {n}": values for n, values in found.offset.items()}
    arrays |= {f"size {n}": values for n, values in found.size.items()}
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as out:
        np.savez(out, **arrays)
    temporary.replace(kept)
    return found
