"""The way out: the same shards through stock webdataset.

webdataset's own `.decode()` unpickles `KEY.pyd`, `KEY.pickle` and `KEY.pth`, which runs code that a stranger's tar brings along.
Here only the members that the shard contract knows are decoded.
"""

import io
import json
import os
from typing import Any

import numpy as np

from loader.cache import Cache, cache_folder
from loader.remote import open_files
from loader.source import open_source


def as_webdataset(path: str | os.PathLike[str], split: str = "train", **options: Any) -> Any:
    """A `webdataset.WebDataset` over the shards of `path`, members decoded: `sample["moments_256.npy"]`, `sample["txt"]`.

    Members of other names stay bytes: do not add `.decode()`, which unpickles some of them.
    options: as of WebDataset; shardshuffle is False unless given. Its latents are raw: scaling is up to you.
    """
    import webdataset

    folder = cache_folder()
    files = open_files(path, Cache(folder, None), patience=60.0)
    source = open_source(files, split, folder)
    counts = source.samples([], False)
    urls = [files.address(path) for path, count in zip(source.paths, counts, strict=True) if count]
    return webdataset.WebDataset(urls, **{"shardshuffle": False, "empty_check": False, **options}).map(
        decode_members
    )


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
