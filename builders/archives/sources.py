"""What a dataset fetches, declared once: it serves a local folder, a download and a stream alike.

A dataset's `_sources` names its archives and annotation files with their published names. With `data_dir` they are taken from there;
else `datasets` downloads them into its cache, or streams them in place. The records are the same whichever way.
"""

import abc
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from builders.archives.member import Member
from builders.archives.members import all_members, is_hidden
from builders.archives.remote import is_local, open_file, version_of
from builders.archives.zips import count_zip
from builders.core.account import TOLD, Left
from builders.core.annotation_db import Join, open_join
from builders.core.base import ImageCaptionBuilder, make_key
from builders.core.errors import ArchiveError, MissingSourceError
from builders.core.log import logger
from builders.core.record import SourceRow

ROWS_PER_SHARD = 4096  # a zip with more members is offered as several ranges


@dataclass(frozen=True)
class Source:
    """One published file.

    path       where it lies under data_dir: the relative path of a Hub repository, else the bare file name
    url        where it comes from
    size       bytes, where they are known for certain
    sha256     likewise
    members    about how many entries, of a zip with more than ROWS_PER_SHARD of them
    """

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    members: int = 0


class SplitSources(NamedTuple):
    """A split's archives, one or more shards each, and the annotation files that all of them need."""

    archives: list[Source]
    tables: Mapping[str, Source] = MappingProxyType({})


@dataclass(frozen=True)
class ArchiveShard:
    """One archive or, of a big zip, the `index`-th of `count` ranges. Locations are local paths or URLs."""

    split: str
    location: str
    path: str
    tables: dict[str, str]
    index: int = 0
    count: int = 1

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1


def local_files(shard: ArchiveShard) -> list[str]:
    """Files on this machine that the rows of a shard come from."""
    return [place for place in (shard.location, *shard.tables.values()) if is_local(place)]


class ArchiveBuilder(ImageCaptionBuilder):
    """Base of the datasets that come as archives: implement `_sources` and `_read`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files = local_files
        self._hidden: dict[tuple[str, str, int], Left] = {}  # of each shard that has been read

    @abc.abstractmethod
    def _sources(self) -> dict[str, SplitSources]:
        """What each split is made of, under the current config."""

    @abc.abstractmethod
    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        """The rows of one shard; raises ArchiveError where the archive breaks off."""

    def sources(self) -> list[Source]:
        """Every file that the current config needs, each once."""
        splits = self._sources().values()
        files = [source for archives, tables in splits for source in (*tables.values(), *archives)]
        return list(dict.fromkeys(files))

    def identity(self, shards: list[ArchiveShard]) -> str:
        """Archives by their published paths alone: one that was damaged may be fetched again, and its size then differs."""
        tables = {
            location: _name_and_size(location) for shard in shards for location in shard.tables.values()
        }
        return repr([(shard.path, shard.index, shard.count) for shard in shards]) + repr([*tables.values()])

    def _shards(self, dl_manager: Any) -> dict[str, list[ArchiveShard]]:
        sources = self._sources()
        if self.config.data_dir is not None:
            sources = self._present(sources)
        shards: dict[str, list[ArchiveShard]] = {}
        for split, (archives, tables) in sources.items():
            located = self._locate(dl_manager, [*archives, *tables.values()])
            beside = dict(zip(tables, located[len(archives) :], strict=True))
            shards[split] = [
                ArchiveShard(split, location, source.path, beside, index, count)
                for source, location in zip(archives, located, strict=False)
                for index, count in self._ranges(source, location)
            ]
        self._by_split = shards
        return shards

    def left_out(self, split: str, shard: ArchiveShard) -> Mapping[str, Left]:
        left = {"hidden": self._hidden.get(_place(shard), Left(0))}
        return {**left, **self._left_beside(split)} if shard == self._by_split[split][0] else left

    def _left_beside(self, split: str) -> Mapping[str, Left]:
        """What the split has beside its archives."""
        uncaptioned = self._uncaptioned() if split == next(iter(self._by_split)) else 0
        absent = self._absent(self._by_split[split])
        return {"no_caption_split": Left(uncaptioned), "archive_absent": Left(absent)}

    def _uncaptioned(self) -> int:
        """Images of a split that was published without captions."""
        return 0

    def _absent(self, shards: list[ArchiveShard]) -> int:
        """Annotations that belong to the split of these shards, but to no archive that they read."""
        return 0

    def _locate(self, dl_manager: Any, sources: list[Source]) -> list[str]:
        if self.config.data_dir is not None:
            return [os.path.join(self.config.data_dir, source.path) for source in sources]
        return list(dl_manager.download([source.url for source in sources]))

    def _present(self, sources: dict[str, SplitSources]) -> dict[str, SplitSources]:
        """The splits that data_dir can serve, each with the archives that are there."""
        root, kept, lacking = self.config.data_dir, {}, []
        for split, (archives, tables) in sources.items():
            here = [source for source in archives if os.path.isfile(os.path.join(root, source.path))]
            absent = [
                source.path
                for source in (*archives, *tables.values())
                if not os.path.isfile(os.path.join(root, source.path))
            ]
            lacking += absent
            if not here or any(table.path in absent for table in tables.values()):
                logger.warning(f"{self.name}: split {split} is left out, not in data_dir: {_some(absent)}")
                continue
            if absent and getattr(self.config, "parts", None) is not None:
                raise MissingSourceError(
                    f"builders/{self.name}: parts={self.config.parts!r}, but not in {root!r}: {_some(absent)}"
                )
            if absent:
                logger.warning(
                    f"{self.name}: split {split} has {len(here):,} of {len(archives):,} archives in data_dir"
                )
            kept[split] = SplitSources(here, tables)
        if not kept:
            raise MissingSourceError(
                f"builders/{self.name}: data_dir={root!r} has none of its archives. Looked for {_some(lacking)}. "
                f"Fetch them with: python -m builders.download {self.name} --data-dir {root}"
            )
        return kept

    def _ranges(self, source: Source, location: str) -> list[tuple[int, int]]:
        """(index, count) of each range that the archive is offered as."""
        if (slices := getattr(self.config, "first_slice_of", 1)) > 1:
            return [(0, slices)]
        if source.members <= ROWS_PER_SHARD:
            return [(0, 1)]
        members = source.members
        if is_local(location):
            with open_file(location) as file:
                try:
                    members = count_zip(file)
                except ArchiveError:
                    members = 1  # reading it will say so, and count it
        count = max(1, -(-members // ROWS_PER_SHARD))
        return [(index, count) for index in range(count)]

    def _rows(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        try:
            yield from self._read(shard)
        except ArchiveError as error:
            logger.warning(
                f"{self.name}: {shard.path} breaks off ({error}); the rows before are kept. Fetch it again."
            )
            key = make_key(f"{shard.path}#{shard.index}")
            yield SourceRow(key, None, None, shard.path, {"error": str(error)}, "bad_archive")

    def _members(self, shard: ArchiveShard) -> Iterator[Member]:
        """The shard's members, in order, hidden ones passed over."""
        index, count = shard.index, shard.count
        with open_file(shard.location, self.token) as file, self._following(file, index, count):
            yield from self._visible(shard, all_members(file, index, count))

    def _visible(self, shard: ArchiveShard, members: Iterable[Member]) -> Iterator[Member]:
        """Those of a shard's members that are not hidden; the others are counted."""
        hidden, names = 0, list[str]()
        try:
            for member in members:
                if not is_hidden(member.name):
                    yield member
                elif (hidden := hidden + 1) <= TOLD:
                    names.append(f"{shard.path}/{member.name}")
        finally:
            self._hidden[_place(shard)] = Left(hidden, tuple(names))

    def _join(
        self, location: str, rows: Callable[[], Iterable[tuple[str, str, Any]]], scope: str = ""
    ) -> Join:
        """The on-disk join made from one table; `scope` names what of it `rows` picks."""
        folder = os.path.join(self._cache_dir_root, "builders_joins")
        identity = f"{self.hash} {scope} {version_of(location, self.token)}"
        return open_join(folder, location.partition("?")[0], identity, rows)


def _place(shard: ArchiveShard) -> tuple[str, str, int]:
    return shard.split, shard.location, shard.index


def hub_url(repository: str, path: str) -> str:
    return f"hf://datasets/{repository}/{path}"


def _name_and_size(location: str) -> tuple[str, int | None]:
    """The size only where it costs no request."""
    if is_local(location):
        return os.path.basename(location), os.path.getsize(location)
    return posixpath.basename(location.partition("?")[0]), None


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:6]) + (f" and {len(paths) - 6:,} more" if len(paths) > 6 else "")
