"""The way out: the same shards through stock webdataset."""

import os
from typing import Any

from loader.cache import Cache, cache_folder
from loader.remote import open_files
from loader.source import open_source


def as_webdataset(path: str | os.PathLike[str], split: str = "train", **options: Any) -> Any:
    """A `webdataset.WebDataset` over the shards of `path`, members decoded: `sample["moments_256.npy"]`, `sample["txt"]`.

    options: as of WebDataset; shardshuffle is False unless given. Its latents are raw: scaling is up to you.
    """
    import webdataset

    folder = cache_folder()
    files = open_files(path, Cache(folder, None), patience=60.0)
    source = open_source(files, split, folder)
    counts = source.samples([], False)
    urls = [files.address(path) for path, count in zip(source.paths, counts, strict=True) if count]
    return webdataset.WebDataset(urls, **{"shardshuffle": False, "empty_check": False, **options}).decode()
