"""Tars as the shard writer writes them: byte for byte those of tarfile, whatever is written, copied, cut short or behind."""

import hashlib
import io
import os
import resource
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from loader.format import FormatError
from precompute.shards.tar_writer import BEHIND, CHUNK, AtOnce, TarWriter, tar_header

SIZES = [0, 1, 511, 512, 513, 10_000]


@pytest.mark.parametrize("key", ["k", "k" * 95, "k" * 150, "k" * 300])
def test_tar_is_read_by_others_and_offsets_are_those_of_the_data(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.tar"
    writer = TarWriter(path)
    contents = {f"{key}.{size}": os.urandom(size) for size in SIZES}
    offsets = {name: writer.add(name, data) for name, data in contents.items()}
    digest = writer.close().result()
    raw = path.read_bytes()
    assert digest == hashlib.sha256(raw).hexdigest()
    assert {name: raw[at : at + len(contents[name])] for name, at in offsets.items()} == contents
    with tarfile.open(path) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == contents
    listed = subprocess.run(["tar", "-tf", path], check=True, text=True, capture_output=True).stdout.split()
    assert listed == list(contents)


def test_tar_bytes_are_those_of_tarfile(tmp_path: Path) -> None:
    """The header is written without tarfile, for speed; it must be the same one."""
    names = ["a.txt", "k" * 99, "k" * 100, "k" * 101, "k" * 260, "dir/é.txt", "日本.txt"]
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    writer = TarWriter(ours)
    with tarfile.open(theirs, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            for size in SIZES:
                info = tarfile.TarInfo(name)
                info.size = size
                tar.addfile(info, io.BytesIO(b"x" * size))
                writer.add(name, b"x" * size)
    writer.close().result()
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 8**11 - 1, 8**11, 8**11 + 1, 1 << 40])
@pytest.mark.parametrize("name", ["a.npy", "k" * 100, "k" * 101])
def test_a_header_of_any_size_is_that_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name, size) == info.tobuf(tarfile.PAX_FORMAT)


def test_a_write_that_the_disk_cuts_short_is_told(tmp_path: Path) -> None:
    """A call may write less than it was given, without an error: at a quota, on a disk that is nearly full."""
    writer = TarWriter(tmp_path / "a.tar")
    writer.add("a", bytes(40_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        writer.discard()
    assert (tmp_path / "a.tar").stat().st_size == 20_000


class Later(Executor):
    """Does what it is given when its result is asked for. most: what waited at once."""

    def __init__(self) -> None:
        self.waiting, self.most = 0, 0

    def submit(self, work: Callable[..., object], /, *arguments: object, **named: object) -> Future[object]:
        class Asked(Future[object]):
            def result(asked, timeout: float | None = None) -> object:
                self.waiting -= 1
                return work(*arguments, **named)

        self.waiting += 1
        self.most = max(self.most, self.waiting)
        return Asked()


def test_few_chunks_wait_for_a_hash_that_is_slow(tmp_path: Path) -> None:
    hasher = Later()
    writer = TarWriter(tmp_path / "a.tar", hasher)
    writer.add("a", bytes(8 * CHUNK))
    assert hasher.most == BEHIND
    writer.discard()


@pytest.mark.parametrize("hasher", [None, AtOnce()], ids=["beside", "at once"])
def test_members_copied_from_another_file_are_those_of_tarfile_over_any_border_of_chunks(
    tmp_path: Path, hasher: Executor | None
) -> None:
    """What is copied ends before, at and behind a chunk's end, and is longer than one; one that is cut is told."""
    contents = os.urandom(3 * CHUNK)
    (tmp_path / "source").write_bytes(contents)
    sizes = [0, 1, 511, CHUNK - 3584, 512, 1, CHUNK - 1024, 700_000, 700_000, 700_000, 2 * CHUNK + 7, 3]
    pieces = [(f"{'k' * (10 * number)}.npy", number * 17, size) for number, size in enumerate(sizes)]
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    with open(tmp_path / "source", "rb") as source:
        writer = TarWriter(ours, hasher)
        offsets = writer.copy((name, source.fileno(), start, size) for name, start, size in pieces)
        digest = writer.close().result()
        short = TarWriter(tmp_path / "short.tar", hasher)
        with pytest.raises(FormatError, match="tar that cut is copied from ends early"):
            short.copy([("cut", source.fileno(), 2 * CHUNK + 1, CHUNK)])
        short.discard()
    with tarfile.open(theirs, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, start, size in pieces:
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(contents[start : start + size]))
    with tarfile.open(theirs) as tar:
        assert offsets == [member.offset_data for member in tar]
    assert ours.read_bytes() == theirs.read_bytes()
    assert digest == hashlib.sha256(theirs.read_bytes()).hexdigest()
