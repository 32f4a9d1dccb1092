"""Where shards lie: a folder, a dataset on the Hub (`hf://datasets/USER/REPO[@REVISION]`), an object store. Read only.

The markers are the truth about what is there; the manifest only repeats them. precompute writes all files into one folder,
but the Hub takes no more than 10,000 in one: a split of many units lies there in folders of a hundred units each.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NoReturn, Protocol

from fsspec.core import url_to_fs
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from loader.format import MANIFEST, SHARD_NAME, Manifest, Marker, Split
from precompute.errors import NotListed, OutputError, UsageError
from precompute.shards.hub_client import bound_silence
from precompute.shards.markers import manifest_of

UNITS = 100  # in a folder: with buckets a unit may be a hundred files
NOT_THERE = (
    FileNotFoundError,
    NotADirectoryError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    OfflineModeIsEnabled,
)
IN_FOLDER = re.compile(r"(?P<split>[A-Za-z0-9_-]+)/\d{4,}/(?P=split)-\d{5,}(-\d{2,})?\.(tar|parquet|json)")


def hub_folder(marker: Marker) -> str:
    """Say where the files of a unit lie on the Hub: `train/0003` for train-00300 to train-00399; empty: beside the manifest."""
    return f"{marker.split}/{marker.unit // UNITS:04d}" if marker.plan["units"] > UNITS else ""


@dataclass(frozen=True)
class File:
    """A file of the folder. size in bytes; sha256 where the store knows it without reading, as the Hub does."""

    size: int
    sha256: str | None = None


class Reader(Protocol):
    """How the bytes of a place are had. What fails raises OSError, or what the place's own client raises."""

    @property
    def local(self) -> bool:
        """Whether they lie on a disk here."""
        ...

    def list(self) -> tuple[dict[str, File], list[str]]:
        """Files by their path below the place, down to folders of units, and folders that are empty."""
        ...

    def read(self, path: str, start: int | None, end: int | None) -> bytes:
        """Bytes `start` to `end`, exclusive, of a file; by default all of it."""
        ...

    def open(self, path: str) -> BinaryIO:
        """A stream to read forward."""
        ...


class Store:
    """files: name -> size, and sha256 where the Hub knows it. copies: paths of files whose name another has, nearer to the
    manifest. strays: folders that hold no units. reader: by default of the folder, or what fsspec opens. Raises UsageError
    where there is nothing to read, and its kind NotListed where nobody can say.
    """

    def __init__(self, url: str, reader: Reader | None = None) -> None:
        self.url = url
        try:
            self._reader = reader or FsspecReader(url)
            entries, empty = self._reader.list()
        except (OSError, ValueError, ImportError) as error:
            self._refuse(error)
        self.local = self._reader.local
        folders = {path.partition("/")[0] for path in entries if "/" in path and not path.startswith(".")}
        units = {path for path in entries if IN_FOLDER.fullmatch(path)}
        foreign = {path.partition("/")[0] for path in entries.keys() - units if "/" in path} & folders
        self.strays = sorted(foreign | set(empty))
        entries = {path: file for path, file in entries.items() if "/" not in path or path in units}
        self._paths: dict[str, str] = {}
        self.copies: list[str] = []
        for path in sorted(entries, key=lambda path: (path.count("/"), path)):
            if self._paths.setdefault(os.path.basename(path), path) != path:
                self.copies.append(path)
        self.files = {name: entries[path] for name, path in self._paths.items()}
        if MANIFEST not in self.files and not self.marker_stems():
            raise UsageError(f"{url}: no shards there (no {MANIFEST}, no marker). Name the --output of a run")

    def marker_stems(self) -> list[str]:
        """`train-00000` for each file that has the name of a marker, in order of split and unit."""
        stems = (name.removesuffix(".json") for name in self.files if name.endswith(".json"))
        return sorted(stem for stem in stems if SHARD_NAME.fullmatch(stem))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes `start` to `end`, exclusive, of a file; by default all of it."""
        return self._reader.read(self._paths.get(name, name), start, end)

    def open(self, name: str) -> BinaryIO:
        """A stream to read forward."""
        return self._reader.open(self._paths.get(name, name))

    def _refuse(self, error: Exception) -> NoReturn:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, OutputError):
            raise NotListed(first) from error
        told, remote = f"{self.url}: cannot list it ({first}).", "://" in self.url
        if isinstance(error, NOT_THERE) or not isinstance(error, OSError):
            name = "Check the name; for a private or gated one run `hf auth login`"
            raise UsageError(f"{told} {name if remote else 'Check the path'}") from error
        denied = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
        login = "Run `hf auth login` with an account that may read it"
        raise NotListed(
            f"{told} {login if denied else 'See to rights, disk and network'}, and try again"
        ) from error


class FsspecReader:
    """A folder here, or whatever fsspec opens, the Hub above all. Raises what its file system raises; a stream, what the Hub's
    client raises too."""

    def __init__(self, url: str) -> None:
        self.local = "://" not in url
        if url.startswith("hf://"):
            bound_silence()
        self._fs, self._root = url_to_fs(os.path.expanduser(url) if self.local else url)

    def list(self) -> tuple[dict[str, File], list[str]]:
        with _told_as_os_errors():
            found = {os.path.basename(entry["name"]): entry for entry in self._fs.ls(self._root, detail=True)}
            files = {name: _file(entry) for name, entry in found.items() if entry["type"] == "file"}
            empty = []
            for folder, entry in found.items():
                if entry["type"] == "directory" and not folder.startswith("."):
                    below = self._fs.find(f"{self._root}/{folder}", maxdepth=2, detail=True)
                    paths = {name.rpartition(f"/{folder}/")[2]: entry for name, entry in below.items()}
                    files |= {f"{folder}/{path}": _file(entry) for path, entry in paths.items()}
                    if not below:
                        empty.append(folder)
        return files, empty

    def read(self, path: str, start: int | None, end: int | None) -> bytes:
        options: dict[str, Any] = {} if self.local else {"cache_type": "none"}  # no more than is asked for
        with _told_as_os_errors():
            return bytes(self._fs.cat_file(f"{self._root}/{path}", start=start, end=end, **options))

    def open(self, path: str) -> BinaryIO:
        options: dict[str, Any] = {} if self.local else {"block_size": 16 << 20, "cache_type": "readahead"}
        stream: BinaryIO = self._fs.open(f"{self._root}/{path}", "rb", **options)
        return stream


@contextlib.contextmanager
def _told_as_os_errors() -> Iterator[None]:
    """The Hub's client tells of a broken connection by errors of its own."""
    try:
        yield
    except OSError:
        raise
    except HTTPError as error:
        raise ConnectionError(str(error).strip() or type(error).__name__) from error


def _file(entry: dict[str, Any]) -> File:
    lfs = entry.get("lfs")
    return File(int(entry["size"]), lfs.sha256 if lfs is not None else None)


def expected_manifest(markers: dict[str, Marker], manifest: Manifest | None) -> Manifest:
    """What the markers amount to, with the splits that a manifest has planned and no unit is finished of."""
    first = next(iter(markers.values()), manifest)
    assert first is not None
    result = manifest_of(first.recipe, first.fields, markers.values())
    for name, split in manifest.splits.items() if manifest else ():
        result.splits.setdefault(name, Split(split.plan, 0, (), {}))
    return replace(result, null_caption=manifest.null_caption if manifest else None)
