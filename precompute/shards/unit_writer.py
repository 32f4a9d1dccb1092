"""Shard writer: a unit appears in the output folder whole, or not at all.

Tars and sidecars grow under temporary names in `OUT/.work/`; `commit` syncs them, renames them into place, and writes
the marker last. Whatever no marker lists is unfinished, and the next owner of the unit clears it away.
"""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from loader.format import (
    SHARD_NAME,
    Field,
    FormatError,
    Manifest,
    Marker,
    Shard,
    Split,
    npy_parts,
    sidecar_schema,
)
from precompute.errors import UsageError
from precompute.shards.missing_ok import is_gone, may_be_gone
from precompute.shards.tar_writer import TarWriter

WORK = ".work"
TEMPORARY, GONE = "tmp-", ".gone"

Members = Mapping[str, bytes | npt.NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """What the sidecar keeps of one source row. width, height in pixels, None where the image is unreadable."""

    key: str
    caption: str | None = None
    width: int | None = None
    height: int | None = None
    source: str | None = None
    extras: dict[str, Any] = field(default_factory=dict)


class ShardWriter:
    """One tar and its sidecar, under temporary names: `folder/NUMBER.tar`, `folder/NUMBER.parquet`."""

    def __init__(self, folder: Path, number: int, schema: pa.Schema) -> None:
        self.path = folder / str(number)
        self.samples = 0
        self._schema = schema
        self._tar: TarWriter | None = None
        self._records: list[dict[str, Any]] = []

    def write(self, row: Row, members: Members) -> None:
        if self._tar is None:
            self._tar = TarWriter(self.path.with_suffix(".tar"))
        record = _record(row, "ok")
        for extension, contents in members.items():
            member = extension.removesuffix(".npy")
            data = npy_parts(contents) if isinstance(contents, np.ndarray) else (contents,)
            record[f"offset_{member}"] = self._tar.add(f"{row.key}.{extension}", *data)
            record[f"size_{member}"] = sum(map(len, data))
        self.samples += 1
        self._records.append(record)

    def reject(self, row: Row, reason: str) -> None:
        self._records.append(_record(row, reason))

    def close(self) -> Callable[[], Shard]:
        """End both files. What is returned waits until they are synced; the name is still the temporary one."""
        finished = self._tar.close() if self._tar else None
        out = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._records, schema=self._schema), out, compression="zstd")
        shard = Shard(
            name="temporary-00000",
            samples=self.samples,
            rows=len(self._records),
            bytes=self._tar.position if self._tar else 0,
            sha256="",
            parquet_sha256=hashlib.sha256(out.getvalue()).hexdigest(),
        )
        write_file(self.path.with_suffix(".parquet"), out.getvalue())
        return lambda: replace(shard, sha256=finished.result()) if finished else shard

    def discard(self) -> None:
        if self._tar is not None:
            self._tar.discard()


class UnitWriter:
    """Writes the rows of one unit, in source order: `commit` makes them visible, and `discard` must follow, always.

    samples_per_shard: samples a tar holds at most; a unit of more is several shards under one marker.
    owner: names the writing process and its turn, so that two owners of a unit (one presumed dead) never share a
    temporary file.
    """

    def __init__(
        self, output: Path, split: str, unit: int, members: Sequence[str], samples_per_shard: int, owner: str
    ) -> None:
        self.stem = f"{split}-{unit:05d}"
        self._output, self._split, self._unit = output, split, unit
        self._schema = sidecar_schema(members)
        self._samples_per_shard = samples_per_shard
        self._work = output / WORK / f"{self.stem}.{owner}"
        self._work.mkdir(parents=True)
        self._open: dict[Hashable, ShardWriter] = {}
        self._closed: list[tuple[Hashable, ShardWriter, Callable[[], Shard]]] = []
        self._rejected: Counter[str] = Counter()

    def write(self, row: Row, members: Members, group: Hashable = None) -> None:
        """One sample. members: extension (`moments_256.npy`, `txt`, `json`) -> file contents, or the array that an `.npy`
        file is to hold; adjacent in the tar.

        group: samples of different groups never share a shard; with buckets, the shapes (H, W, 3) of their pixels.
        """
        if group in self._open and self._open[group].samples == self._samples_per_shard:
            self._close(group)
        self._shard(group).write(row, members)

    def reject(self, row: Row, reason: str, group: Hashable = None) -> None:
        """A source row that became no sample."""
        self._rejected[reason] += 1
        self._shard(group).reject(row, reason)

    def commit(
        self, recipe: dict[str, Any], fields: Iterable[Field], plan: dict[str, Any], timings: dict[str, Any]
    ) -> Marker:
        """Make the unit visible: shards first, marker last. Raises an OSError that `is_gone` once `revoke` has moved
        our files."""
        if not self._open and not self._closed:
            self._shard(None)
        for group in list(self._open):
            self._close(group)
        fields = tuple(fields)
        bucketed = any(None in field.shape[1:] for field in fields if field.kind in ("moments", "latents"))
        shards, files = [], set()
        for number, (group, writer, synced) in enumerate(self._closed, start=1):
            shard = synced()
            name = self.stem if len(self._closed) == 1 else f"{self.stem}-{number:02d}"
            for suffix in (".tar", ".parquet") if shard.samples else (".parquet",):
                writer.path.with_suffix(suffix).rename(self._output / f"{name}{suffix}")
                files.add(f"{name}{suffix}")
            shards.append(replace(shard, name=name, bucket=_bucket_name(group) if bucketed else ""))
        self._remove_all_but(files)
        sync_directory(self._output)
        marker = Marker(
            split=self._split,
            unit=self._unit,
            recipe=recipe,
            fields=fields,
            plan=plan,
            shards=tuple(shards),
            rejected=dict(sorted(self._rejected.items())),
            timings=timings,
        )
        write_file(self._output / f"{self.stem}.json", marker.to_json().encode(), self._work / "marker")
        return marker

    def discard(self) -> None:
        """Leave nothing temporary behind, committed or not."""
        for shard in [*self._open.values(), *(writer for _, writer, _ in self._closed)]:
            shard.discard()
        shutil.rmtree(self._work, ignore_errors=True)

    def _shard(self, group: Hashable) -> ShardWriter:
        if group not in self._open:
            number = len(self._open) + len(self._closed)
            self._open[group] = ShardWriter(self._work, number, self._schema)
        return self._open[group]

    def _close(self, group: Hashable) -> None:
        self._closed.append((group, self._open[group], self._open[group].close()))
        del self._open[group]

    def _remove_all_but(self, files: Container[str]) -> None:
        """What an earlier owner had renamed into place before it died, and this one has no file of the same name for."""
        for suffix in (".tar", ".parquet"):
            for pattern in (f"{self.stem}{suffix}", f"{self.stem}-*{suffix}"):
                for leftover in self._output.glob(pattern):
                    if leftover.name not in files:
                        with may_be_gone():
                            leftover.unlink()


def _bucket_name(group: Hashable) -> str:
    """`640x384`: width and height of the pictures, one pair for each resolution; empty where all rows were rejected."""
    shapes = group if isinstance(group, tuple) else ()
    return "+".join(f"{width}x{height}" for height, width, *_ in shapes)


def _record(row: Row, status: str) -> dict[str, Any]:
    extras = json.dumps(row.extras, ensure_ascii=False, sort_keys=True)
    return {**vars(row), "extras": extras, "status": status}


def revoke(output: Path, stem: str, turn: int) -> None:
    """Take the temporary files of a unit's owners before `turn` away from them, at one stroke: a rename.

    An owner that was only asleep finds nothing left to make visible.
    """
    for folder in in_work(output):
        owner = re.fullmatch(re.escape(stem) + r"\.(\d+)-.*", folder.name)
        if owner and folder.name.endswith(GONE):
            shutil.rmtree(folder, ignore_errors=True)
        elif owner and int(owner[1]) < turn:
            with may_be_gone():
                shutil.rmtree(folder.rename(f"{folder}{GONE}"), ignore_errors=True)


def write_shared(output: Path, name: str, data: bytes) -> None:
    """`OUT/name`, which any process may write. Its temporary file may be swept away by one that finds all work done."""
    while True:
        (output / WORK).mkdir(exist_ok=True)
        try:
            return write_file(output / name, data, output / WORK / f"{TEMPORARY}{secrets.token_hex(8)}")
        except OSError as error:
            if not is_gone(error):
                raise


def sweep(output: Path, finished: Container[str]) -> None:
    """Remove what dead processes left: of the finished units, by stem, and of files that any process may write."""
    for leftover in in_work(output):
        if leftover.name.startswith(TEMPORARY) or leftover.name.partition(".")[0] in finished:
            with may_be_gone():
                if leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink()


def in_work(output: Path) -> list[Path]:
    """What lies in the folder of temporary files; nothing once whoever finished last has removed it."""
    try:
        return list((output / WORK).iterdir())
    except OSError as error:
        if not is_gone(error):
            raise
        return []


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
        with may_be_gone():
            temporary.unlink()
        raise
    sync_directory(path.parent)


def open_folder(flag: str, folder: Path) -> None:
    """Make the folder, and write to it once. Raises UsageError, which starts with `flag`, where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{flag} {folder}: cannot write there ({error.strerror}); name another folder"
        ) from error


def sync_directory(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def marker_paths(output: Path) -> list[Path]:
    """The markers of all finished units, in order of split and unit."""
    return sorted(path for path in output.glob("*-*.json") if is_marker(path.name))


def is_marker(name: str) -> bool:
    return name.endswith(".json") and SHARD_NAME.fullmatch(name.removesuffix(".json")) is not None


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
