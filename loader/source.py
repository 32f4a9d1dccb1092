"""Shards at one place, as their manifest says: what a sample holds, how many each shard has, and how to open one."""

import logging
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.folders import Files, LocalFolder
from loader.format import Field, FormatError, Manifest, Shard
from loader.index import scan
from loader.printable import printable
from loader.sidecar import I64, LARGEST_TABLE, Table, read_ok_rows, read_sidecar
from loader.sidecar_schema import tokens_column

log = logging.getLogger("loader")

IMAGE_MEMBER = re.compile(r"(moments|latents)_\d+(_flipped)?")
GUESSES = 16  # samples that are tried for the shape of a field
TEXT_MEMBER = re.compile(r"(caption_latents|caption_pooled)(_.+)?")


class DataError(RuntimeError):
    """A sample that cannot be read, and must be (`on_error="raise"`), or that has no readable substitute."""


class OpenShard:
    """A shard's tars, open for os.pread, and its table. Closes them when nobody uses it any more.

    tars: descriptors by the members that lie there, "" for all others: with layers a shard has a tar in each.
    """

    def __init__(self, tars: Mapping[str, int], table: Table) -> None:
        self._tars, self.table = tars, table
        for descriptor in set(tars.values()):
            weakref.finalize(self, os.close, descriptor)

    def descriptor(self, member: str) -> int:
        """A descriptor of the tar in which a member lies."""
        return self._tars[member] if member in self._tars else self._tars[""]

    def keep(self, samples: I64) -> None:
        """Only these, by their numbers, are samples of the shard from now on."""
        self.table = self.table.only(samples)


def check_captions(fields: Sequence[Field], members: Sequence[str], table: Table, name: str) -> None:
    """Raises FormatError where several captions lie in a member, and nothing says where."""
    several = [tokens_column(f.name) for f in fields if f.captions > 1 and f.name in members]
    if missing := sorted(set(several) - set(table.columns)):
        raise FormatError(f"{name} has several captions of a sample, and no {missing[0]} says where they lie")


class ManifestSource:
    """Shards as precompute writes them. names: of the shards; paths, sizes: of their tars; recipe, fingerprint: of the manifest;
    plan, missing: of the split: its plan, and how many of its units are not finished. tars: that are open for one shard. buckets,
    shapes: of the shards, in a bucket's words; of shards and layers the base's bucket, and the sizes of all their pictures."""

    tars = 1

    def __init__(self, files: Files, manifest: Manifest, split: str) -> None:
        self.files, self.fields = files, manifest.fields
        self.recipe, self.fingerprint = manifest.recipe, manifest.fingerprint
        self.caption_kinds = manifest.splits[split].caption_kinds
        self._shards, self.plan = manifest.splits[split].shards, manifest.splits[split].plan
        done, units = manifest.splits[split].units_done, self.plan["units"]
        self.missing = units - done
        if self.missing:
            log.warning(
                "%s: %d of %d units of split %s are finished, and only they are read; with the others the order is another",
                *(files.url, done, units, split),
            )
        self.buckets = self.shapes = [shard.bucket for shard in self._shards]
        self.names = [shard.name for shard in self._shards]
        self.paths = [f"{shard.path}.tar" for shard in self._shards]
        self.sidecars = [shard.parquet_sha256 for shard in self._shards]
        self.sizes = [shard.bytes for shard in self._shards]

    @property
    def parts(self) -> "list[ManifestSource]":
        """The folders that samples are joined of: this one."""
        return [self]

    @property
    def shards(self) -> Sequence[Shard]:
        """The shards of the split, in order of unit."""
        return self._shards

    @property
    def remote(self) -> bool:
        """Whether the tars come over a network."""
        return not isinstance(self.files, LocalFolder)

    def reading(self, members: Sequence[str]) -> "ManifestSource":
        """The same, of which only these members are read."""
        return self

    def files_of(self, field: Field) -> Files:
        """The folder that has a field."""
        return self.files

    def ok_rows(self, number: int, columns: Sequence[str]) -> Any:
        """Columns of a shard's samples, from its sidecar alone, as an Arrow table; `status` has to be one, and is dropped.

        Raises OSError, or FormatError where the sidecar is damaged or lacks a column.
        """
        with os.fdopen(self.open_sidecar(number), "rb") as file:
            try:
                return read_ok_rows(file, columns)
            except FormatError as error:
                raise FormatError(f"{self.names[number]}.parquet: {error}") from error

    def open_sidecar(self, number: int) -> int:
        """A descriptor of the shard's parquet, which the caller closes. Raises OSError or FormatError."""
        return self.files.open(f"{self._shards[number].path}.parquet", 0, self.sidecars[number])

    def open_tar(self, number: int) -> int:
        """A descriptor of the shard's tar, which the caller closes. Raises OSError or FormatError."""
        shard = self._shards[number]
        return self.files.open(f"{shard.path}.tar", shard.bytes, shard.sha256)

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

    def samples(self, members: Sequence[str], columns: Sequence[str]) -> npt.NDArray[np.int64]:
        """Number of samples with all of `members` in each shard."""
        return np.array([shard.samples for shard in self._shards], np.int64)

    def open(
        self, number: int, members: Sequence[str], columns: Sequence[str], table: Table | None = None
    ) -> OpenShard:
        """table: that an earlier opening gave, and need not be read again. Raises OSError or FormatError."""
        tar = self.open_tar(number)
        try:
            return OpenShard({"": tar}, table or self._table(number, tar, members, columns))
        except BaseException:
            os.close(tar)
            raise

    def cached_as(self, number: int) -> list[str]:
        """Names of its tars in the cache; none where they are local."""
        return [self._shards[number].sha256] if self.remote else []

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

    def read_table(
        self, number: int, members: Sequence[str], columns: Sequence[str], times: int = 0
    ) -> Table:
        """What the sidecar says of the samples. times: its size, that it may unpack to. Raises FileNotFoundError or FormatError."""
        shard = self._shards[number]
        with os.fdopen(self.open_sidecar(number), "rb") as file:
            try:
                most = max(LARGEST_TABLE, times * os.fstat(file.fileno()).st_size)
                table = read_sidecar(file, members, columns, shard.rows, shard.bytes, most)
            except (OSError, FormatError) as error:
                raise FormatError(f"{shard.name}.parquet: {printable(error)}") from error
        return self._checked(number, table, members)

    def _table(self, number: int, tar: int, members: Sequence[str], columns: Sequence[str]) -> Table:
        shard = self._shards[number]
        try:
            return self.read_table(number, members, columns)
        except FileNotFoundError:
            log.warning(
                "%s/%s.parquet is missing: reading the headers of the tar", self.files.url, shard.path
            )
        with os.fdopen(os.dup(tar), "rb") as file:
            found = scan(file, shard.bytes, f"{self.files.url}/{shard.path}.tar")
        return self._checked(number, found.table(members, columns), members)

    def _checked(self, number: int, table: Table, members: Sequence[str]) -> Table:
        shard = self._shards[number]
        check_captions(self.fields, members, table, shard.name)
        if len(table) != shard.samples:
            raise FormatError(f"{shard.name}.parquet does not belong to {shard.name}.tar")
        return table
