"""The way out: the same shards through stock webdataset.

webdataset's own `.decode()` unpickles `KEY.pyd`, `KEY.pickle` and `KEY.pth`, which runs code that a stranger's tar brings along.
Here only the members that the shard contract knows are decoded.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from loader.cache import Cache, cache_folder
from loader.printable import printable
from loader.remote import RemoteFolder, open_files
from loader.source import open_source
from loader.transport import FsspecTransport


def as_webdataset(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    storage_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A `webdataset.WebDataset` over the shards of `path`, members decoded: `sample["moments_256.npy"]`, `sample["txt"]`.

    Members of other names stay bytes: do not add `.decode()`, which unpickles some of them.
    storage_options: of fsspec's file system for s3:// and its like. options: as of WebDataset; shardshuffle is False unless given.
    Its latents are raw: scaling is up to you.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("as_webdataset needs the package webdataset: pip install webdataset") from error

    folder = cache_folder()
    files = open_files(path, Cache(folder, None), patience=60.0, storage_options=storage_options)
    source = open_source(files, split, folder)
    counts = source.samples([], False)
    urls = [files.address(path) for path, count in zip(source.paths, counts, strict=True) if count]
    dataset = webdataset.WebDataset(urls, **{"shardshuffle": False, "empty_check": False, **options})
    if isinstance(files, RemoteFolder) and isinstance(files.transport, FsspecTransport):
        stages = dataset.pipeline
        (stage,) = [n for n, one in enumerate(stages) if isinstance(one, webdataset.cache.StreamingOpen)] or [
            -1
        ]
        if stage < 0:
            raise ValueError(f"cache_dir: {files.url} is read in place; leave cache_dir out")
        stages[stage] = _Open(files.transport, options.get("handler", webdataset.reraise_exception))
    return dataset.map(decode_members)


class _Open:
    """Opens each URL through fsspec, where webdataset itself knows no such protocol. handler: of errors, as webdataset's."""

    def __init__(self, transport: FsspecTransport, handler: Callable[[Exception], bool]) -> None:
        self._transport, self._handler, self._root = transport, handler, transport.address("")

    def __call__(self, urls: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in urls:
            try:
                stream = self._transport.open(sample["url"].removeprefix(self._root))
            except OSError as error:
                if self._handler(error):
                    continue
                return
            # What webdataset says of a sample's place holds no login.
            yield {**sample, "url": printable(sample["url"]), "stream": stream}


def decode_members(sample: dict[str, Any]) -> dict[str, Any]:
    """`*.npy` as arrays, never unpickled; `txt` as str, `json` as what it says; all else as it is.

    Raises ValueError for a damaged member, which WebDataset's `handler` may skip.
    """
    return {name: _decode(name, value) for name, value in sample.items()}


def _decode(name: str, value: Any) -> Any:
    if name.endswith(".npy"):
        return np.load(io.BytesIO(value), allow_pickle=False)
    if name == "txt":
        return value.decode("utf-8")
    return json.loads(value) if name == "json" else value
