"""One dataset at one place: what a sample holds, how many each shard has, and how to open one.

Opening a dataset reads its manifest and nothing else, however many shards there are. A folder of foreign tars, with no
manifest, is scanned instead (index.py).
"""

import contextlib
import logging
import os
import re
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.folders import Files, LocalFolder
from loader.format import MANIFEST, Field, FormatError, Kind, Manifest
from loader.index import DoubledMember, Scan, scan, scan_cached
from loader.npy import npy_array
from loader.printable import printable
from loader.sidecar import I64, Table, read_sidecar

log = logging.getLogger("loader")

IMAGE_MEMBER = re.compile(r"(moments|latents)_\d+(_flipped)?")
GUESSES = 16  # samples that are tried for the shape of a field
TEXT_MEMBER = re.compile(r"(caption_latents|caption_pooled)(_.+)?")


class DataError(RuntimeError):
    """A sample that cannot be read, and must be (`on_error="raise"`), or that has no readable substitute."""


class OpenShard:
    """A shard's tar, open for os.pread, and its table. Closes itself when nobody uses it any more."""

    def __init__(self, descriptor: int, table: Table) -> None:
        self.descriptor, self.table = descriptor, table
        weakref.finalize(self, os.close, descriptor)

    def keep(self, samples: I64) -> None:
        """Only these, by their numbers, are samples of the shard from now on."""
        self.table = self.table.only(samples)


def open_source(files: Files, split: str, cache: Path) -> "Source":
    """Raises FormatError for an unreadable manifest, ValueError for an unknown split or a folder without shards."""
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


class ManifestSource:
    """Shards as precompute writes them. names: of the shards; paths: of their tars; recipe, fingerprint: of the manifest."""

    def __init__(self, files: Files, manifest: Manifest, split: str) -> None:
        self.files, self.fields = files, manifest.fields
        self.recipe, self.fingerprint = manifest.recipe, manifest.fingerprint
        self._shards = manifest.splits[split].shards
        if not manifest.splits[split].complete:
            done, units = manifest.splits[split].units_done, manifest.splits[split].plan["units"]
            log.warning(
                "%s: %d of %d units of split %s are finished, and only they are read; with the others the order is another",
                *(files.url, done, units, split),
            )
        self.buckets = [shard.bucket for shard in self._shards]
        self.names = [shard.name for shard in self._shards]
        self.paths = [f"{shard.path}.tar" for shard in self._shards]
        self.sidecars = [shard.parquet_sha256 for shard in self._shards]

    def open_sidecar(self, number: int) -> int:
        """A descriptor of the shard's parquet, which the caller closes. Raises OSError or FormatError."""
        return self.files.open(f"{self._shards[number].path}.parquet", 0, self.sidecars[number])

    @property
    def largest(self) -> int:
        """Bytes of the largest tar."""
        return max((shard.bytes for shard in self._shards), default=0)

    def shards_at_once(self, window: int, samples: I64) -> int:
        """Shards that a window of so many samples touches, on average and rounded up. samples: that are read of each shard."""
        shards, total = int(np.count_nonzero(samples)), int(samples.sum())
        return min(shards, -(-window * shards // max(total, 1)) + 1)

    def cache_needed(self, window: int, samples: I64) -> int:
        """Bytes that hold a window's shards and the one after them, with their sidecars."""
        shards = min(int(np.count_nonzero(samples)), self.shards_at_once(window, samples) + 1)
        return shards * (self.largest + self.largest // 16)

    def samples(self, members: Sequence[str], captions: bool) -> npt.NDArray[np.int64]:
        """Number of samples with all of `members` in each shard."""
        return np.array([shard.samples for shard in self._shards], np.int64)

    def open(
        self, number: int, members: Sequence[str], captions: bool, table: Table | None = None
    ) -> OpenShard:
        """table: that an earlier opening gave, and need not be read again. Raises OSError or FormatError."""
        shard = self._shards[number]
        tar = self.files.open(f"{shard.path}.tar", shard.bytes, shard.sha256)
        try:
            return OpenShard(tar, table or self._table(number, tar, members, captions))
        except BaseException:
            os.close(tar)
            raise

    def cached_as(self, number: int) -> str:
        """Name of its tar in the cache; empty where it has none."""
        return "" if isinstance(self.files, LocalFolder) else self._shards[number].sha256

    def reserve(self, number: int) -> bool:
        """Take the room for its tar; False where there is none now. Raises OSError or FormatError."""
        shard = self._shards[number]
        return self.files.reserve(f"{shard.path}.tar", shard.bytes, shard.sha256)

    def prefetch(self, number: int) -> bool:
        """Make opening it fast; False where there is no room for it now. Raises OSError or FormatError."""
        shard = self._shards[number]
        sidecar = self.files.prefetch(f"{shard.path}.parquet", 0, shard.parquet_sha256)
        return self.files.prefetch(f"{shard.path}.tar", shard.bytes, shard.sha256) and sidecar

    def discard(self, number: int) -> bool:
        """Forget local copies of a damaged shard; True if opening it again may give a better one."""
        shard = self._shards[number]
        tar = self.files.discard(f"{shard.path}.tar", shard.sha256)
        return self.files.discard(f"{shard.path}.parquet", shard.parquet_sha256) or tar

    def _table(self, number: int, tar: int, members: Sequence[str], captions: bool) -> Table:
        shard = self._shards[number]
        try:
            sidecar = self.open_sidecar(number)
        except FileNotFoundError:
            log.warning(
                "%s/%s.parquet is missing: reading the headers of the tar", self.files.url, shard.path
            )
            with os.fdopen(os.dup(tar), "rb") as file:
                table = scan(file, shard.bytes, f"{self.files.url}/{shard.path}.tar").table(members, captions)
        else:
            with os.fdopen(sidecar, "rb") as file:
                try:
                    table = read_sidecar(file, members, captions, shard.rows, shard.bytes)
                except (OSError, FormatError) as error:
                    raise FormatError(f"{shard.name}.parquet: {printable(error)}") from error
        if len(table) != shard.samples:
            raise FormatError(f"{shard.name}.parquet does not belong to {shard.name}.tar")
        return table


class TarSource:
    """A local folder of tars of which nothing is known but their headers."""

    def __init__(self, files: LocalFolder, cache: Path) -> None:
        self.files, self._cache = files, cache
        self.recipe: dict[str, Any] = {}
        self.fingerprint = ""
        self._paths = _tars_below(files.path)
        self.names = self.paths = [str(path.relative_to(files.path)) for path in self._paths]
        if not self._paths:
            raise ValueError(f"{files.url}: no {MANIFEST} and no .tar there")
        self._unreadable: dict[Path, str] = {}
        self.buckets = [""] * len(self._paths)
        self.fields = self._guess_fields()

    def samples(self, members: Sequence[str], captions: bool) -> npt.NDArray[np.int64]:
        with ThreadPoolExecutor(8) as pool:
            tables = pool.map(lambda path: len(self._scan(path, members, captions)), self._paths)
            return np.array(list(tables), np.int64)

    def open(
        self, number: int, members: Sequence[str], captions: bool, table: Table | None = None
    ) -> OpenShard:
        path = self._paths[number]
        return OpenShard(
            self.files.open(self.names[number], 0, ""), table or self._scan(path, members, captions)
        )

    def cached_as(self, number: int) -> str:
        return ""

    def reserve(self, number: int) -> bool:
        return True

    def prefetch(self, number: int) -> bool:
        return True

    def discard(self, number: int) -> bool:
        return False

    def _scan(self, path: Path, members: Sequence[str], captions: bool) -> Table:
        return self._found(path).table(members, captions)

    def _found(self, path: Path) -> Scan:
        """What the headers say; nothing of a file that is no tar, which is told once. Raises FormatError for a doubled member."""
        try:
            return scan_cached(path, self._cache)
        except DoubledMember:
            raise
        except FormatError as error:
            if path not in self._unreadable:
                self._unreadable[path] = str(error)
                log.warning("%s; it is left out, and the other tars are read", error)
            return Scan(np.empty(0, np.str_), {}, {})

    def _guess_fields(self) -> tuple[Field, ...]:
        """Fields by their member names, dtypes and shapes by the first sample that has them."""
        for path in self._paths:
            found = self._found(path)
            guesses = [self._guess(path, name, found.offset[name], found.size[name]) for name in found.offset]
            if fields := tuple(guess for guess in guesses if guess is not None):
                return fields
        raise ValueError(
            f"{self.files.url}: no tar there holds latents_R.npy, moments_R.npy or caption_latents.npy"
            + "".join(f"; {reason}" for reason in list(self._unreadable.values())[:1])
        )

    def _guess(
        self, path: Path, name: str, offset: npt.NDArray[np.int64], size: npt.NDArray[np.int64]
    ) -> Field | None:
        match = IMAGE_MEMBER.fullmatch(name) or TEXT_MEMBER.fullmatch(name)
        if match is None:
            return None
        kinds: dict[str, Kind] = {"moments": "moments", "latents": "latents"}
        kinds |= {"caption_latents": "caption_latents", "caption_pooled": "caption_pooled"}
        first = _first_array(path, offset, size)
        if first is None:
            return None
        ragged = len(np.unique(size[offset >= 0])) > 1
        shape: tuple[int, ...] = first.shape
        axes: tuple[int | None, ...] = (
            (None, *shape[1:]) if ragged and match[1] == "caption_latents" else shape
        )
        return Field(name, kinds[match[1]], first.dtype.name, axes)


def _first_array(
    path: Path, offset: npt.NDArray[np.int64], size: npt.NDArray[np.int64]
) -> npt.NDArray[Any] | None:
    """The first of a few members that is a readable .npy."""
    with path.open("rb") as file:
        for index in np.flatnonzero(offset >= 0)[:GUESSES].tolist():
            file.seek(int(offset[index]))
            with contextlib.suppress(FormatError):
                return npy_array(file.read(int(size[index])))
    return None


def _tars_below(folder: Path) -> list[Path]:
    """All tars, sorted; links to folders are followed, each folder once. macOS's `._` files are none."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(parent, name) for name in files if name.endswith(".tar") and not name.startswith("._")]
    return sorted(found)


Source = ManifestSource | TarSource
