"""Shard writer: a unit appears in the output folder whole, or not at all.

Tars and sidecars grow under temporary names in `OUT/.work/`; `commit` syncs them, renames them into place, and writes
the marker last. Whatever no marker lists is unfinished, and the next owner of the unit clears it away.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from loader.format import SHARD_NAME, Field, FormatError, Manifest, Marker, Shard, Split, sidecar_schema

WORK = ".work"
BLOCK, RECORD = 512, 20 * 512


@dataclass(frozen=True)
class Row:
    """What the sidecar keeps of one source row. width, height in pixels, None where the image is unreadable."""

    key: str
    caption: str | None = None
    width: int | None = None
    height: int | None = None
    source: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)


class TarWriter:
    """Uncompressed tar whose bytes depend on names and data alone: no times, no owners. Hashes as it writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._file: BinaryIO = open(path, "wb", buffering=1 << 20)
        self._sha256 = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append one member and return the offset of its data, in bytes."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._put(info.tobuf(tarfile.PAX_FORMAT))
        offset = self.position
        self._put(data)
        self._put(bytes(-len(data) % BLOCK))
        return offset

    def close(self) -> str:
        """Write the end of the archive, sync to disk, and return the sha256 of the whole file."""
        end = self.position + 2 * BLOCK
        self._put(bytes(2 * BLOCK + -end % RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._sha256.hexdigest()

    def discard(self) -> None:
        """Close an unfinished file that is about to be deleted; a full disk must not hide the error that led here."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.position += len(data)


class UnitWriter:
    """Writes the rows of one unit, in source order: `commit` makes them visible, and `discard` must follow, always.

    samples_per_shard: samples a tar holds at most; a unit of more is several shards under one marker.
    token: names the writing process, so that two owners of a unit (one presumed dead) never share a temporary file.
    """

    def __init__(
        self, output: Path, split: str, unit: int, members: Sequence[str], samples_per_shard: int, token: str
    ) -> None:
        self.stem = f"{split}-{unit:05d}"
        self._output, self._split, self._unit = output, split, unit
        self._schema = sidecar_schema(members)
        self._samples_per_shard = samples_per_shard
        self._work = output / WORK / f"{self.stem}.{token}"
        clear_unit(output, split, unit)
        self._work.mkdir(parents=True)
        self._tar: TarWriter | None = None
        self._samples = 0
        self._records: list[dict[str, Any]] = []
        self._done: list[Shard] = []
        self.rejected: Counter[str] = Counter()

    def write(self, row: Row, members: dict[str, bytes]) -> None:
        """One sample. members: extension (`moments_256.npy`, `txt`, `json`) -> file contents, adjacent in the tar."""
        if self._samples == self._samples_per_shard:
            self._finish_shard()
        if self._tar is None:
            self._tar = TarWriter(self._work / f"{len(self._done)}.tar")
        record = self._record(row, "ok")
        for extension, data in members.items():
            member = extension.removesuffix(".npy")
            record[f"offset_{member}"] = self._tar.add(f"{row.key}.{extension}", data)
            record[f"size_{member}"] = len(data)
        self._samples += 1
        self._records.append(record)

    def reject(self, row: Row, reason: str) -> None:
        """A source row that became no sample."""
        self.rejected[reason] += 1
        self._records.append(self._record(row, reason))

    def commit(
        self, recipe: dict[str, Any], fields: Iterable[Field], plan: dict[str, Any], timings: dict[str, Any]
    ) -> Marker:
        """Make the unit visible: shards first, marker last. Raises FileNotFoundError if another owner took over."""
        if self._records or not self._done:
            self._finish_shard()
        names = (
            [self.stem]
            if len(self._done) == 1
            else [f"{self.stem}-{i:02d}" for i in range(1, len(self._done) + 1)]
        )
        shards = []
        for index, (name, shard) in enumerate(zip(names, self._done, strict=True)):
            if shard.samples:
                (self._work / f"{index}.tar").rename(self._output / f"{name}.tar")
            (self._work / f"{index}.parquet").rename(self._output / f"{name}.parquet")
            shards.append(Shard(**{**vars(shard), "name": name}))
        sync_directory(self._output)
        marker = Marker(
            split=self._split,
            unit=self._unit,
            recipe=recipe,
            fields=tuple(fields),
            plan=plan,
            shards=tuple(shards),
            rejected=dict(sorted(self.rejected.items())),
            timings=timings,
        )
        write_file(self._output / f"{self.stem}.json", marker.to_json().encode(), self._work / "marker")
        return marker

    def discard(self) -> None:
        """Leave nothing temporary behind, committed or not."""
        if self._tar is not None:
            self._tar.discard()
        shutil.rmtree(self._work, ignore_errors=True)

    def _record(self, row: Row, status: str) -> dict[str, Any]:
        extras = json.dumps(row.extras, ensure_ascii=False, sort_keys=True)
        return {**vars(row), "extras": extras, "status": status}

    def _finish_shard(self) -> None:
        index = len(self._done)
        size = sha256 = None
        if self._tar is not None:
            sha256 = self._tar.close()
            size = self._tar.position
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._records, schema=self._schema), out, compression="zstd")
        write_file(self._work / f"{index}.parquet", out.getvalue())
        self._done.append(
            Shard(
                name=self.stem,
                samples=self._samples,
                rows=len(self._records),
                bytes=size or 0,
                sha256=sha256 or "",
                parquet_sha256=hashlib.sha256(out.getvalue()).hexdigest(),
            )
        )
        self._tar, self._samples, self._records = None, 0, []


def clear_unit(output: Path, split: str, unit: int, token: str = "*") -> None:
    """Remove what an owner of an unfinished unit left: one owner's temporary files, or by default everybody's."""
    stem = f"{split}-{unit:05d}"
    for leftover in output.glob(f"{WORK}/{stem}.{token}/"):
        shutil.rmtree(leftover, ignore_errors=True)
    if token == "*" and not (output / f"{stem}.json").exists():
        for pattern in (f"{stem}.tar", f"{stem}.parquet", f"{stem}-*.tar", f"{stem}-*.parquet"):
            for leftover in output.glob(pattern):
                leftover.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, temporary: Path | None = None) -> None:
    """Write, sync, and only then rename to `path`: the file is there whole or not at all."""
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def marker_paths(output: Path) -> list[Path]:
    """The markers of all finished units, in order of split and unit."""
    return sorted(path for path in output.glob("*-*.json") if SHARD_NAME.fullmatch(path.stem))


def read_marker(path: Path) -> Marker:
    try:
        return Marker.from_json(path.read_bytes())
    except FormatError as error:
        raise FormatError(f"{path}: {error}. Remove it and run precompute/run.py again") from error


def manifest_of(recipe: dict[str, Any], fields: Iterable[Field], markers: Iterable[Marker]) -> Manifest:
    """The manifest that a set of markers, all of one recipe, amounts to."""
    by_split: dict[str, list[Marker]] = {}
    for marker in markers:
        by_split.setdefault(marker.split, []).append(marker)
    splits = {}
    for name, done in by_split.items():
        done.sort(key=lambda marker: marker.unit)
        rejected: Counter[str] = Counter()
        for marker in done:
            rejected.update(marker.rejected)
        shards = tuple(shard for marker in done for shard in marker.shards)
        splits[name] = Split(done[0].plan, len(done), shards, dict(sorted(rejected.items())))
    return Manifest(recipe, tuple(fields), splits)
