"""The way out: the same shards through stock webdataset.

webdataset's own `.decode()` unpickles `KEY.pyd`, `KEY.pickle` and `KEY.pth`, which runs code that a stranger's tar brings along.
Here only the members that the shard contract knows are decoded.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from loader.cache import Cache, cache_folder
from loader.folders import Files
from loader.joined import JoinedSource, open_dataset
from loader.npy import npy_array
from loader.options import Layered, Path_
from loader.printable import printable
from loader.remote import RemoteFolder, open_files
from loader.source import ManifestSource
from loader.tar_source import TarSource
from loader.tar_stream import check_plain, open_stream
from loader.transport import FsspecTransport

Tars = dict[str, tuple[str, int]]  # by URL: name in the folder, bytes


def as_webdataset(
    path: Path_ | Layered,
    split: str = "train",
    *,
    storage_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A `webdataset.WebDataset` over the shards of `path`, members decoded: `sample["moments_256.npy"]`, `sample["txt"]`.

    Members of other names stay bytes: do not add `.decode()`, which unpickles some of them.
    path: a tuple is a folder and the layers beside it; a sample has the members of all, and those that are not whole are left out.
    storage_options: of fsspec's file system for s3:// and its like. options: as of WebDataset; shardshuffle is False unless given.
    Its latents are raw: scaling is up to you. Fields of bfloat16 are arrays of uint16: `torch.from_numpy(a).view(torch.bfloat16)`.
    Several captions of a sample lie end to end, as `sample["json"]` says in caption_tokens.
    """
    folder = cache_folder()
    files = [
        open_files(one, Cache(folder, None), patience=60.0, storage_options=storage_options)
        for one in (path if isinstance(path, tuple) else (path,))
    ]
    source = open_dataset(files[0], split, folder, files[1:])
    parts = source.parts if isinstance(source, JoinedSource) else [source]
    numbers = np.flatnonzero(source.samples([], [])).tolist()
    tars = [
        {place.address(part.paths[n]): (part.paths[n], _size(part, n)) for n in numbers}
        for place, part in zip(files, parts, strict=True)
    ]
    dataset = _stream(files[0], tars[0], options)
    if len(parts) > 1:
        bases = [printable(url) for url in tars[0]]
        layers = [
            (place, {base: {url: tar} for base, (url, tar) in zip(bases, mine.items(), strict=True)})
            for place, mine in zip(files[1:], tars[1:], strict=True)
        ]
        dataset = dataset.compose(_Join(layers, options))
    handler = {"handler": options["handler"]} if "handler" in options else {}
    return dataset.map(decode_members, **handler)


def _size(part: ManifestSource | TarSource, number: int) -> int:
    """Bytes of a tar that a manifest knows; 0 of others, which lie here."""
    return part.sizes[number] if isinstance(part, ManifestSource) else 0


def _stream(files: Files, tars: Tars, options: dict[str, Any]) -> Any:
    """Samples of some tars, members undecoded."""
    try:
        import webdataset
    except ImportError as error:
        raise ImportError("as_webdataset needs the package webdataset: pip install webdataset") from error

    dataset = webdataset.WebDataset(list(tars), **{"shardshuffle": False, "empty_check": False, **options})
    stages = dataset.pipeline
    opening = [n for n, one in enumerate(stages) if isinstance(one, webdataset.cache.StreamingOpen)]
    if opening:
        stages[opening[0]] = _Open(files, tars, options.get("handler", webdataset.reraise_exception))
    elif isinstance(files, RemoteFolder) and isinstance(files.transport, FsspecTransport):
        raise ValueError(f"cache_dir: {files.url} is read in place; leave cache_dir out")
    return dataset


class _Join:
    """Adds the members of layers to samples of the base; those that are not in every layer are left out.

    layers: of each its files, and its tar by the URL of the base's. A layer's samples are of the base's, in the same order.
    """

    def __init__(self, layers: list[tuple[Files, dict[str, Tars]]], options: dict[str, Any]) -> None:
        kept = {
            name: value for name, value in options.items() if name in ("handler", "cache_dir", "cache_size")
        }
        self._layers, self._options = layers, {**kept, "nodesplitter": None, "workersplitter": None}

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        url = ""
        streams: list[Iterator[dict[str, Any]]] = []
        ahead: list[dict[str, Any] | None] = []
        for sample in samples:
            if sample["__url__"] != url:
                url = sample["__url__"]
                streams = [iter(_stream(f, tars[printable(url)], self._options)) for f, tars in self._layers]
                ahead = [next(stream, None) for stream in streams]
            found = [
                one if one is not None and one["__key__"] == sample["__key__"] else None for one in ahead
            ]
            for number, one in enumerate(found):
                if one is not None:
                    ahead[number] = next(streams[number], None)
            if None not in found:
                yield {
                    name: value for one in (*found, sample) if one is not None for name, value in one.items()
                }


class _Open:
    """Opens each tar: here, or as long as its manifest says and no further. handler: of errors, as webdataset's."""

    def __init__(self, files: Files, tars: Tars, handler: Callable[[Exception], bool]) -> None:
        self._files, self._tars, self._handler = files, tars, handler

    def __call__(self, urls: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in urls:
            try:
                stream = self._opened(sample["url"])
            except (OSError, ValueError) as error:
                if self._handler(error):
                    continue
                return
            # What webdataset says of a sample's place holds no login.
            place = {} if isinstance(self._files, RemoteFolder) else {"local_path": sample["url"]}
            with stream:
                yield {**sample, "url": printable(sample["url"]), **place, "stream": stream}

    def _opened(self, url: str) -> BinaryIO:
        files = self._files
        stream = open_stream(files, *self._tars[url]) if isinstance(files, RemoteFolder) else open(url, "rb")
        try:
            check_plain(stream)
        except (OSError, ValueError):
            stream.close()
            raise
        return stream


def decode_members(sample: dict[str, Any]) -> dict[str, Any]:
    """`*.npy` as arrays, never unpickled; `txt` as str, `json` as what it says; all else as it is.

    Raises ValueError for a damaged member, which WebDataset's `handler` may skip.
    """
    return {name: _decode(name, value) for name, value in sample.items()}


def _decode(name: str, value: Any) -> Any:
    if name.endswith(".npy"):
        return npy_array(bytearray(value))
    if name == "txt":
        return value.decode("utf-8")
    if name != "json":
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise ValueError("a .json that is nested too deep") from None
