"""A dataset that a stranger made is data: reading it runs no code and touches no file but those of the cache."""

import gc
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from loader import as_webdataset, make_loader
from loader.format import FormatError, Manifest
from loader.npy import npy_bytes
from tests.support.faulty_server import serve
from tests.support.keyed_shards import write_shards


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def add_member(tar: Path, extension: str, data: bytes) -> None:
    """Give every sample of a tar one member more."""
    out = io.BytesIO()
    with tarfile.open(tar) as old, tarfile.open(fileobj=out, mode="w") as new:
        seen = set()
        for info in old:
            new.addfile(info, old.extractfile(info))
            key = info.name.partition(".")[0]
            if key not in seen:
                seen.add(key)
                extra = tarfile.TarInfo(f"{key}.{extension}")
                extra.size = len(data)
                new.addfile(extra, io.BytesIO(data))
    tar.write_bytes(out.getvalue())


# webdataset leaves tars open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "pt", "x.pyd", "evil.npy", "npz"])
def test_a_member_with_code_in_it_is_not_run(tmp_path: Path, extension: str) -> None:
    folder, mark = write_shards(tmp_path / "shards", [3]), tmp_path / "ran"
    data = io.BytesIO()
    if extension in ("pth", "pt"):
        torch.save(Evil(mark), data)
    else:
        pickle.dump(Evil(mark), data)
    add_member(folder / "train-00000.tar", extension, data.getvalue())
    try:
        samples = list(as_webdataset(folder))
    except ValueError:
        assert extension == "evil.npy"
    else:
        assert [sample["moments_256.npy"].shape for sample in samples] == [(8, 4, 4)] * 3
        assert samples[0]["txt"] == "a picture of k000001"
    assert not mark.exists()
    gc.collect()  # what webdataset leaves open


NAMES = ["ABSOLUTE", "../../precious", "../precious", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "", ".", 7, None, ["0" * 64]]  # fmt: skip


@pytest.mark.parametrize("field", ["sha256", "parquet_sha256"])
@pytest.mark.parametrize("name", NAMES)
def test_a_hash_is_a_hash_before_it_is_a_file_name(
    tmp_path: Path, cache: Path, field: str, name: Any
) -> None:
    folder = write_shards(tmp_path / "shards", [3, 4])
    cache.mkdir()
    precious = cache.parent / "precious"
    precious.write_text("mine")
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["splits"]["train"]["shards"]:
        shard[field] = str(precious) if name == "ABSOLUTE" else name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=f"train-00000: {field} .* is not 64 hexadecimal digits"):
        Manifest.from_json((folder / "manifest.json").read_bytes())
    with serve(folder) as server, pytest.raises(FormatError, match=r"manifest\.json"):
        next(iter(make_loader(server.url, 2, resolution=256, patience=1)))
    assert precious.read_text() == "mine"
    assert {path.name for path in cache.parent.iterdir()} <= {"cache", "shards", "precious"}


def header_of(shape: tuple[int, ...]) -> bytes:
    """A .npy that ends behind its header, as numpy writes it."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return out.getvalue()


# webdataset leaves tars open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "extension, data",
    [
        ("big.npy", header_of((2 * 10**13,))),
        ("short.npy", npy_bytes(np.zeros(4, np.float16))[:-1]),
        ("none.npy", b""),
        ("zip.npy", b"PK\x03\x04" + bytes(60)),
        ("json", b"[" * 100_000),
        ("json", b"{"),
    ],
)
def test_a_member_that_claims_what_it_is_not_is_an_error_that_a_handler_may_skip(
    tmp_path: Path, extension: str, data: bytes
) -> None:
    folder = write_shards(tmp_path / "shards", [3])
    add_member(folder / "train-00000.tar", extension, data)
    with pytest.raises(ValueError):
        list(as_webdataset(folder))
    assert not list(as_webdataset(folder, handler=webdataset.ignore_and_continue))
    gc.collect()
