"""A folder of foreign tars, with no manifest: their headers are scanned (index.py), and what they hold is guessed."""

import contextlib
import logging
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.folders import Files, LocalFolder
from loader.format import MANIFEST, Field, FormatError, Kind
from loader.index import DoubledMember, Scan, scan_cached
from loader.npy import npy_array
from loader.recipe import Recipe
from loader.sidecar import Table
from loader.source import OpenShard

log = logging.getLogger("loader")

IMAGE_MEMBER = re.compile(r"(moments|latents)_\d+(_flipped)?")
GUESSES = 16  # samples that are tried for the shape of a field
TEXT_MEMBER = re.compile(r"(caption_latents|caption_pooled)(_.+)?")


class TarSource:
    """A local folder of tars of which nothing is known but their headers."""

    remote, tars = False, 1

    def __init__(self, files: LocalFolder, cache: Path) -> None:
        self.files, self._cache = files, cache
        self.recipe: Recipe = {}
        self.caption_kinds: dict[str, int] = {}
        self.fingerprint = ""
        self._paths = _tars_below(files.path)
        self.names = self.paths = [str(path.relative_to(files.path)) for path in self._paths]
        if not self._paths:
            raise ValueError(f"{files.url}: no {MANIFEST} and no .tar there")
        self._unreadable: dict[Path, str] = {}
        self.buckets = self.shapes = [""] * len(self._paths)
        self.fields = self._guess_fields()

    def samples(self, members: Sequence[str], columns: Sequence[str]) -> npt.NDArray[np.int64]:
        with ThreadPoolExecutor(8) as pool:
            tables = pool.map(lambda path: len(self._scan(path, members, columns)), self._paths)
            counts = np.array(list(tables), np.int64)
        if not counts.any():
            wanted = ", ".join([f"{member}.npy" for member in members] + ["txt"] * ("caption" in columns))
            raise ValueError(f"{self.files.url}: no sample of the tars there has all of {wanted}")
        return counts

    def open(
        self, number: int, members: Sequence[str], columns: Sequence[str], table: Table | None = None
    ) -> OpenShard:
        path = self._paths[number]
        tar = self.files.open(self.names[number], 0, "")
        return OpenShard({"": tar}, table or self._scan(path, members, columns))

    def reading(self, members: Sequence[str]) -> "TarSource":
        return self

    def files_of(self, field: Field) -> Files:
        return self.files

    def cached_as(self, number: int) -> list[str]:
        return []

    def reserve(self, number: int) -> bool:
        return True

    def prefetch(self, number: int) -> bool:
        return True

    def discard(self, number: int) -> bool:
        return False

    def _scan(self, path: Path, members: Sequence[str], columns: Sequence[str]) -> Table:
        return self._found(path).table(members, columns)

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
