"""The shard writer: plain tars, the same bytes each time, and a unit that is there whole or not at all."""

import contextlib
import errno
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from loader.bucket import Bucket
from loader.format import FormatError, Marker, npy_bytes
from precompute.errors import OutputError
from precompute.shards.destination import WORK
from precompute.shards.markers import read_marker
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.tar_writer import CHUNK, AtOnce, TarWriter
from precompute.shards.unit_writer import SidecarRow, UnitWriter
from tests.support.calls import Calls

LATENTS = npy_bytes(np.arange(8, dtype=np.float16).reshape(2, 4))
SIZES = [0, 1, 511, 512, 513, 10_000]


def write_unit(folder: Path, owner: str = "1-ab", rows: int = 5, per_shard: int = 2, unit: int = 0) -> Marker:
    """Five samples and two rejected rows, two samples a shard."""
    writer = UnitWriter(OutputFolder(folder), unit, ["latents_8", "txt"], per_shard, owner)
    try:
        writer.reject(SidecarRow("first"), "missing_image")
        for index in range(rows):
            members = {"latents_8.npy": LATENTS, "txt": f"caption {index}".encode()}
            writer.write(SidecarRow(f"k{index}", f"caption {index}", 8, 8, "a.tar", {"n": index}), members)
        writer.reject(SidecarRow("last"), "undecodable")
        return writer.commit({"vae": "x"}, [], {"units": 1}, {})
    finally:
        writer.discard()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("shard", [None, "train-00000-02"])
def test_a_row_of_a_layer_that_is_of_no_shard_of_the_base_is_named(tmp_path: Path, shard: str | None) -> None:
    writer = UnitWriter(
        OutputFolder(tmp_path), 0, ["latents_8"], 2, "1-ab", ["train-00000-00", "train-00000-01"]
    )
    writer.write(SidecarRow("a"), {"latents_8.npy": LATENTS}, shard="train-00000-01")
    writer.write(SidecarRow("b"), {"latents_8.npy": LATENTS}, shard=shard)
    with pytest.raises(OutputError, match=rf"train-00000: a row of shard {shard}, which the base has not"):
        writer.commit({"vae": "x"}, [], {"units": 1}, {})
    writer.discard()
    assert files(tmp_path) == {}


# --- tars ---


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


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_keeps_long_keys_whole(tmp_path: Path) -> None:
    writer = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], 10, "1-ab")
    keys = ["a" * length for length in (90, 101, 150, 230)]
    for key in keys:
        writer.write(SidecarRow(key), {"txt": key.encode()})
    writer.commit({}, [], {}, {})
    writer.discard()
    read = list(webdataset.WebDataset(str(tmp_path / "train-00000.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [sample["txt"] for sample in read] == keys


# --- units ---


def test_unit_of_many_samples_is_several_shards_under_one_marker(tmp_path: Path) -> None:
    marker = write_unit(tmp_path)
    names = ["train-00000-01", "train-00000-02", "train-00000-03"]
    assert [shard.name for shard in marker.shards] == names
    assert [(shard.samples, shard.rows) for shard in marker.shards] == [(2, 3), (2, 2), (1, 2)]
    assert marker.rejected == {"missing_image": 1, "undecodable": 1}
    assert read_marker(tmp_path / "train-00000.json") == marker
    for shard in marker.shards:
        tar = (tmp_path / f"{shard.name}.tar").read_bytes()
        table = (tmp_path / f"{shard.name}.parquet").read_bytes()
        assert (len(tar), hashlib.sha256(tar).hexdigest()) == (shard.bytes, shard.sha256)
        assert hashlib.sha256(table).hexdigest() == shard.parquet_sha256
    rows = [row for name in names for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist()]
    assert [row["key"] for row in rows] == ["first", "k0", "k1", "k2", "k3", "k4", "last"]
    assert [row["status"] for row in rows] == ["missing_image", *["ok"] * 5, "undecodable"]
    assert rows[0]["offset_txt"] is None


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_unit(tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_unit_without_rows_is_finished_all_the_same(tmp_path: Path) -> None:
    writer = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], 10, "1-ab")
    marker = writer.commit({}, [], {}, {})
    writer.discard()
    assert (marker.samples, marker.rows) == (0, 0)
    assert set(files(tmp_path)) == {"train-00000.json", "train-00000.parquet"}


def test_unit_of_rejected_rows_has_a_sidecar_and_no_tar(tmp_path: Path) -> None:
    write_unit(tmp_path, rows=0)
    assert set(files(tmp_path)) == {"train-00000.json", "train-00000.parquet"}
    assert pq.read_table(tmp_path / "train-00000.parquet").column("key").to_pylist() == ["first", "last"]


def test_buckets_do_not_share_a_shard(tmp_path: Path) -> None:
    writer = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], 2, "1-ab")
    buckets = {"a": Bucket(((64, 32),)), "b": Bucket(((32, 64),))}
    for index, name in enumerate("abababa"):
        writer.write(SidecarRow(f"{name}{index}"), {"txt": b""}, buckets[name])
    writer.reject(SidecarRow("b7"), "too_small", buckets["b"])
    marker = writer.commit({}, [], {}, {})
    writer.discard()
    keys = [pq.read_table(tmp_path / f"{s.name}.parquet").column("key").to_pylist() for s in marker.shards]
    assert keys == [["a0", "a2"], ["b1", "b3"], ["a4", "a6"], ["b5", "b7"]]


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    writer = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], 1, "1-ab")
    writer.write(SidecarRow("a"), {"txt": b"a"})
    writer.write(SidecarRow("b"), {"txt": b"b"})
    writer.discard()
    assert not list((tmp_path / WORK).iterdir()) and not files(tmp_path)


# --- faults ---


class Fault:
    """Raises at the `at`-th of the calls that touch the disk."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def before(self, call: Callable) -> Callable:
        def faulty(*args: object, **kwargs: object) -> object:
            self.calls += 1
            if self.calls == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return faulty


@pytest.mark.parametrize("at", range(1, 62))
def test_whatever_call_fails_the_unit_is_whole_or_absent_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    (tmp_path / "clean").mkdir()
    expected = files_of(write_unit, tmp_path / "clean")
    folder = tmp_path / "faulty"
    folder.mkdir()
    fault = Fault(at)
    with monkeypatch.context() as patch, contextlib.suppress(OSError):
        patch.setattr(Path, "replace", fault.before(Path.replace))
        patch.setattr(os, "fsync", fault.before(os.fsync))
        patch.setattr(TarWriter, "put", fault.before(TarWriter.put))
        write_unit(folder)
    if (folder / "train-00000.json").exists():
        for shard in read_marker(folder / "train-00000.json").shards:
            assert hashlib.sha256((folder / f"{shard.name}.tar").read_bytes()).hexdigest() == shard.sha256
    assert not list((folder / WORK).iterdir()), "nothing temporary stays"
    assert files_of(write_unit, folder, owner="2-cd") == expected


def files_of(write: Callable[..., object], folder: Path, **options: object) -> dict[str, bytes]:
    write(folder, **options)
    return files(folder)


def test_what_a_killed_owner_renamed_already_is_overwritten_or_removed(tmp_path: Path) -> None:
    (tmp_path / "clean").mkdir()
    expected = files_of(write_unit, tmp_path / "clean", per_shard=10)
    dead = tmp_path / "dead"
    (dead / WORK / "train-00000.1-ab").mkdir(parents=True)
    for name in ("train-00000-01.tar", "train-00000-01.parquet", "train-00000-02.tar", "train-00000.tar"):
        (dead / name).write_bytes(b"of a process that was killed before its marker")
    (dead / "train-00001.tar").write_bytes(b"another unit's")
    OutputFolder(dead).revoke("train-00000", 2)
    assert not list((dead / WORK).iterdir())
    found = files_of(write_unit, dead, owner="2-cd", per_shard=10)
    assert found.pop("train-00001.tar") == b"another unit's"
    assert found == expected


def test_revoked_owner_cannot_commit_and_later_ones_are_left_alone(tmp_path: Path) -> None:
    first = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], 10, "1-ab")
    second = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], 10, "2-cd")
    for writer in (first, second):
        writer.write(SidecarRow("k"), {"txt": b"x"})
    OutputFolder(tmp_path).revoke("train-00000", 2)
    with pytest.raises(FileNotFoundError):
        first.commit({}, [], {}, {})
    second.commit({}, [], {}, {})
    first.discard()
    second.discard()
    assert set(files(tmp_path)) == {"train-00000.json", "train-00000.parquet", "train-00000.tar"}


def test_write_file_keeps_the_old_one_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_file(path, b"old")
    monkeypatch.setattr(os, "fsync", Fault(1).before(os.fsync))
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    assert files(tmp_path) == {"manifest.json": b"old"}


@pytest.mark.parametrize("samples_per_shard", [1, 10])
def test_every_file_is_synced_before_it_gets_its_name_and_the_marker_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples_per_shard: int
) -> None:
    calls = Calls(monkeypatch)
    unit = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], samples_per_shard, "1-x")
    for key in ("a", "b"):
        unit.write(SidecarRow(key, key), {"txt": key.encode()})
    unit.commit({}, [], {"units": 1}, {})
    unit.discard()
    names = calls.renamed_into(tmp_path)
    stems = ["train-00000-01", "train-00000-02"] if samples_per_shard == 1 else ["train-00000"]
    assert names == [f"{stem}.{end}" for stem in stems for end in ("tar", "parquet")] + ["train-00000.json"]
    (marker,), shards = calls.when_renamed(".json"), calls.when_renamed(".tar", ".parquet")
    synced = calls.when_synced(tmp_path)
    assert any(max(shards) < n < marker for n in synced) and any(marker < n for n in synced)


def test_a_layer_has_the_names_of_its_base_whatever_they_are(tmp_path: Path) -> None:
    """A part of a unit in a store may lie under another number than it would have alone."""
    names = ["train-00003-50", "train-00003-02"]
    writer = UnitWriter(OutputFolder(tmp_path), 3, [], 10, "1-ab", names)
    for name in reversed(names):
        writer.reject(SidecarRow(name), "missing_image", shard=name)
    marker = writer.commit({"vae": "x"}, [], {"units": 4}, {})
    writer.discard()
    assert [shard.name for shard in marker.shards] == names
    assert {path.name for path in tmp_path.glob("*.parquet")} == {f"{name}.parquet" for name in names}
    other = UnitWriter(OutputFolder(tmp_path), 2, [], 10, "1-ab", names)
    other.reject(SidecarRow("a"), "missing_image", shard=names[0])
    with pytest.raises(OutputError, match="train-00003-50 of the base is not of train-00002"):
        other.commit({"vae": "x"}, [], {"units": 4}, {})
    other.discard()
