"""The shard writer: plain tars, the same bytes each time, and a unit that is there whole or not at all."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from loader.bucket import Bucket
from loader.format import Field, Marker, npy_bytes
from precompute.errors import OutputError
from precompute.shards.destination import WORK
from precompute.shards.markers import read_marker
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.tar_writer import TarWriter
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


def test_a_shard_of_a_layer_holds_its_rows_whatever_their_number_and_bucket(tmp_path: Path) -> None:
    names = ["train-00000-01", "train-00000-02"]
    writer = UnitWriter(OutputFolder(tmp_path), 0, ["latents_8", "txt"], 2, "1-ab", names)
    for key in "abc":
        writer.write(SidecarRow(key), {"txt": b"x"}, Bucket(((8, 8),)), shard=names[1])
    writer.reject(SidecarRow("d"), "non_finite", Bucket(((8, 8),)), shard=names[1])
    writer.reject(SidecarRow("e"), "non_finite", shard=names[0])
    marker = writer.commit({}, [], {}, {}, {"of_no_row": 2})
    writer.discard()
    assert [(shard.name, shard.samples, shard.rows) for shard in marker.shards] == [
        (names[0], 0, 1),
        (names[1], 3, 4),
    ]
    assert marker.left_out == {"of_no_row": 2}
    assert pq.read_table(tmp_path / f"{names[1]}.parquet").column("key").to_pylist() == [*"abcd"]


@pytest.mark.parametrize("copied", [False, True])
def test_embedded_captions_are_counted_by_kind(tmp_path: Path, copied: bool) -> None:
    """What every encoder has embedded counts: of the second row two of its three captions."""
    facts = {
        "a": (["alt"], {"caption_tokens": [3], "caption_tokens_t5": [5]}),
        "b": (["alt", "long", "long"], {"caption_tokens_t5": [5, 9], "caption_tokens": [3, 4, 5]}),
        "c": (["alt"], {"caption_tokens": [3], "caption_tokens_t5": [5]}),
    }
    members = ["caption_latents", "caption_latents_t5", "txt"]
    writer = UnitWriter(OutputFolder(tmp_path / "one"), 0, members, 10, "1-ab")
    for key, (kinds, columns) in facts.items():
        writer.write(SidecarRow(key, caption_kinds=kinds, columns=columns), {"txt": b"x"})
    marker = writer.commit({}, [], {}, {})
    writer.discard()
    if copied:
        table = pq.read_table(tmp_path / "one/train-00000.parquet")
        with open(tmp_path / "one/train-00000.tar", "rb") as tar:
            writer = UnitWriter(OutputFolder(tmp_path / "two"), 0, members, 10, "1-ab")
            places = [[(tar.fileno(), offset, 1)] for offset in table["offset_txt"].to_pylist()]
            writer.copy(table.drop_columns(["status", "offset_txt"]), ["txt"], places)
        marker = writer.commit({}, [], {}, {})
        writer.discard()
    assert marker.caption_kinds == {"alt": 3, "long": 1}


class Renumbering(OutputFolder):
    """A place that gives other numbers than were asked for: an owner that died has left files there."""

    def publish(self, files: Mapping[str, Path], name: str) -> str:
        others = {"train-00000-01": "train-00000-100", "train-00000-02": "train-00000-20"}
        return super().publish(files, others.get(name, name))


def test_shards_stand_by_their_numbers(tmp_path: Path) -> None:
    writer = UnitWriter(Renumbering(tmp_path), 0, ["txt"], 1, "1-ab")
    for key in "abc":
        writer.write(SidecarRow(key), {"txt": b"x"})
    marker = writer.commit({}, [], {}, {})
    writer.discard()
    assert [shard.name[-4:] for shard in marker.shards] == ["0-03", "0-20", "-100"]


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


@pytest.mark.parametrize(
    ("field", "bucketed"),
    [
        (Field("latents", "latents", "float16", (4, None, None)), True),
        (Field("moments_64", "moments", "float16", (8, 8, 8)), False),
        (Field("caption_latents", "caption_latents", "float16", (None, 6)), False),
        (Field("caption_latents", "caption_latents", "float16", (77, 6)), False),
    ],
)
def test_buckets_do_not_share_a_shard(tmp_path: Path, field: Field, bucketed: bool) -> None:
    """The marker names them where the images are of several shapes."""
    writer = UnitWriter(OutputFolder(tmp_path), 0, ["txt"], 2, "1-ab")
    buckets = {"a": Bucket(((64, 32),)), "b": Bucket(((32, 64),))}
    for index, name in enumerate("abababa"):
        writer.write(SidecarRow(f"{name}{index}"), {"txt": b""}, buckets[name])
    writer.reject(SidecarRow("b7"), "too_small", buckets["b"])
    marker = writer.commit({}, [field], {}, {})
    writer.discard()
    assert [s.bucket for s in marker.shards] == [str(buckets[n]) if bucketed else "" for n in "abab"]
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
