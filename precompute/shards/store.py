"""Where shards lie: a folder, or a dataset on the Hub (`hf://datasets/USER/REPO[@REVISION]`). Read only.

The markers are the truth about what is there; the manifest only repeats them. precompute writes all files into one folder,
but the Hub takes no more than 10,000 in one: a split of many units lies there in folders of a hundred units each.
"""

import os
import re
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, NoReturn

from fsspec.core import url_to_fs
from huggingface_hub.errors import HfHubHTTPError

from loader.format import MANIFEST, SHARD_NAME, Manifest, Marker, Split
from precompute.errors import UsageError
from precompute.shards.markers import manifest_of

UNITS = 100  # in a folder: with buckets a unit may be a hundred files
IN_FOLDER = re.compile(r"(?P<split>[A-Za-z0-9_-]+)/\d{4,}/(?P=split)-\d{5,}(-\d{2,})?\.(tar|parquet|json)")


def hub_folder(marker: Marker) -> str:
    """Say where the files of a unit lie on the Hub: `train/0003` for train-00300 to train-00399; empty: beside the manifest."""
    return f"{marker.split}/{marker.unit // UNITS:04d}" if marker.plan["units"] > UNITS else ""


@dataclass(frozen=True)
class File:
    """A file of the folder. size in bytes; sha256 where the store knows it without reading, as the Hub does."""

    size: int
    sha256: str | None = None


class Store:
    """files: name -> size, and sha256 where the Hub knows it. copies: paths of files whose name another has, nearer to the
    manifest. strays: folders that hold no units. Raises UsageError where there is nothing to read.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.local = "://" not in url
        try:
            self._fs, self._root = url_to_fs(os.path.expanduser(url) if self.local else url)
            entries = self._list()
        except (OSError, ValueError, ImportError, HfHubHTTPError) as error:
            self._refuse(error)
        self._paths: dict[str, str] = {}
        self.copies: list[str] = []
        for path in sorted(entries, key=lambda path: (path.count("/"), path)):
            if self._paths.setdefault(os.path.basename(path), path) != path:
                self.copies.append(path)
        self.files = {name: _file(entries[path]) for name, path in self._paths.items()}
        if MANIFEST not in self.files and not self.marker_stems():
            raise UsageError(
                f"{url}: no shards there (no {MANIFEST}, no marker). Name the --output folder of a run"
            )

    def marker_stems(self) -> list[str]:
        """`train-00000` for each file that has the name of a marker, in order of split and unit."""
        stems = (name.removesuffix(".json") for name in self.files if name.endswith(".json"))
        return sorted(stem for stem in stems if SHARD_NAME.fullmatch(stem))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes `start` to `end`, exclusive, of a file; by default all of it."""
        options: dict[str, Any] = {} if self.local else {"cache_type": "none"}  # no more than is asked for
        return bytes(self._fs.cat_file(self._path(name), start=start, end=end, **options))

    def open(self, name: str) -> BinaryIO:
        """A stream to read forward."""
        options: dict[str, Any] = {} if self.local else {"block_size": 16 << 20, "cache_type": "readahead"}
        stream: BinaryIO = self._fs.open(self._path(name), "rb", **options)
        return stream

    def _list(self) -> dict[str, dict[str, Any]]:
        """Files by their path below the root: those beside the manifest, and those in folders of units."""
        found = self._fs.ls(self._root, detail=True)
        entries = {os.path.basename(entry["name"]): entry for entry in found}
        folders = [name for name, entry in entries.items() if entry["type"] == "directory"]
        files = {name: entry for name, entry in entries.items() if entry["type"] == "file"}
        self.strays: list[str] = []
        for folder in folders:
            if not folder.startswith("."):
                below = self._fs.find(f"{self._root}/{folder}", maxdepth=2, detail=True)
                paths = {"/".join(name.split("/")[-3:]): entry for name, entry in below.items()}
                units = {path: entry for path, entry in paths.items() if IN_FOLDER.fullmatch(path)}
                files |= units
                if len(units) < len(paths) or not paths:
                    self.strays.append(folder)
        return files

    def _path(self, name: str) -> str:
        return f"{self._root}/{self._paths.get(name, name)}"

    def _refuse(self, error: Exception) -> NoReturn:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        cure = (
            "Check the path"
            if self.local
            else "Check the name; for a private or gated one run `hf auth login`"
        )
        raise UsageError(f"{self.url}: cannot list it ({first}). {cure}") from error


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
