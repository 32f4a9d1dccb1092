"""Where shards lie: a folder, or a dataset on the Hub (`hf://datasets/USER/REPO[@REVISION]`). Read only.

The markers are the truth about what is there; the manifest only repeats them.
"""

import os
from typing import Any, BinaryIO, NoReturn

from fsspec.core import url_to_fs
from huggingface_hub.errors import HfHubHTTPError

from loader.format import MANIFEST, SHARD_NAME, Manifest, Marker, Split
from precompute.checks import File
from precompute.errors import UsageError
from precompute.shards import manifest_of


class Store:
    """files: name -> size, and sha256 where the Hub knows it. Raises UsageError where there is nothing to read."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.local = "://" not in url
        try:
            self._fs, self._root = url_to_fs(os.path.expanduser(url) if self.local else url)
            entries = self._fs.ls(self._root, detail=True)
        except (OSError, ValueError, ImportError, HfHubHTTPError) as error:
            self._refuse(error)
        self.files = {
            os.path.basename(entry["name"]): _file(entry) for entry in entries if entry["type"] == "file"
        }
        if MANIFEST not in self.files and not self.marker_stems():
            raise UsageError(
                f"{url}: no shards there (no {MANIFEST}, no marker). Name the --output folder of precompute/run.py"
            )

    def marker_stems(self) -> list[str]:
        """`train-00000` for each file that has the name of a marker, in order of split and unit."""
        stems = (name.removesuffix(".json") for name in self.files if name.endswith(".json"))
        return sorted(stem for stem in stems if SHARD_NAME.fullmatch(stem))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes `start` to `end`, exclusive, of a file; by default all of it."""
        options: dict[str, Any] = {} if self.local else {"cache_type": "none"}  # no more than is asked for
        return bytes(self._fs.cat_file(f"{self._root}/{name}", start=start, end=end, **options))

    def open(self, name: str) -> BinaryIO:
        """A stream to read forward."""
        options: dict[str, Any] = {} if self.local else {"block_size": 16 << 20, "cache_type": "readahead"}
        stream: BinaryIO = self._fs.open(f"{self._root}/{name}", "rb", **options)
        return stream

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
    return result
