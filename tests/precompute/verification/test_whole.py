"""What "whole" means: the empty caption, copies that shadow, values that no encoder gives, and what could not be read at all."""

import dataclasses
import hashlib
import importlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from loader.format import MANIFEST, NULL_CAPTION, Manifest, npy_bytes
from precompute import verify
from precompute.commands import VERBS
from precompute.shards import sidecar_table
from precompute.shards.sample_reader import pick_samples
from precompute.shards.store import Store
from precompute.verification.check_folder import Finding
from precompute.verification.check_shard import value_fault
from precompute.verification.read_folder import read_markers
from tests.precompute.verification.test_verify import findings, only, remark, rewrite
from tests.support.finished_folder import FIELDS, members_of, write_shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "latents")


def zipped(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return out.getvalue()


# --- the empty caption ---

ROW = np.ones((2, 6), np.float16)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"garbage", "unreadable"),
        (b"", "unreadable"),
        (zipped(), "unreadable"),
        (zipped(caption_latents=npy_bytes(ROW * np.float16(np.nan))), "not finite"),
        (zipped(caption_latents=npy_bytes(ROW * 0)), "all zeros"),
        (zipped(caption_latents=npy_bytes(np.ones((2, 9), np.float16))), "shape (2, 9), not (None, 6)"),
        (zipped(caption_latents=npy_bytes(ROW.astype(np.float32))), "is float32, not float16"),
        (zipped(caption_latents=npy_bytes(ROW), foo=npy_bytes(ROW)), "foo.npy, which is no field"),
        (zipped(caption_latents=bytes(1 << 20)), "at most"),
        (zipped(caption_latents=npy_bytes(ROW)), "its sha256 differs"),
    ],
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_null_caption_that_is_none_is_named(shards: Path, data: bytes, what: str, quick: bool) -> None:
    (shards / NULL_CAPTION).write_bytes(data)
    finding = only(shards, quick=quick)
    assert finding.shard == NULL_CAPTION and what in finding.what and "made anew" in finding.cure


def test_a_null_caption_that_is_missing_is_named(shards: Path) -> None:
    (shards / NULL_CAPTION).unlink()
    assert (only(shards).shard, only(shards).what) == (NULL_CAPTION, "missing")


def test_the_manifest_knows_its_null_caption(shards: Path) -> None:
    manifest = Manifest.from_json((shards / MANIFEST).read_text())
    assert manifest.null_caption and Manifest.from_json(manifest.to_json()) == manifest
    without = dataclasses.replace(manifest, null_caption=None)
    (shards / MANIFEST).write_text(without.to_json())
    assert "null_caption" not in json.loads(without.to_json()) and findings(shards) == []


# --- copies and folders ---


def test_a_second_copy_is_named_and_hides_no_damage(shards: Path) -> None:
    folder = shards / "train" / "0000"
    folder.mkdir(parents=True)
    shutil.copy(shards / "train-00001.tar", folder)
    finding = only(shards)
    assert finding.shard == "train/0000/train-00001.tar" and "another train-00001.tar" in finding.what
    (shards / "train-00001.tar").write_bytes(b"damaged")
    assert {finding.shard for finding in findings(shards)} == {"train/0000/train-00001.tar", "train-00001"}


def test_a_folder_that_holds_no_units_is_foreign(shards: Path) -> None:
    (shards / "old").mkdir()
    shutil.copy(shards / "train-00001.tar", shards / "old")
    assert only(shards) == Finding("old/", "", "a foreign folder", "move it elsewhere")


# --- values ---

MOMENTS, TEXT = FIELDS
POOLED = dataclasses.replace(TEXT, name="caption_pooled", kind="caption_pooled", shape=(6,))


def moments() -> np.ndarray[Any, Any]:
    random = np.random.default_rng(0)
    return np.abs(random.normal(size=(8, 4, 4))).astype(np.float16) + np.float16(0.1)


@pytest.mark.parametrize(
    ("spec", "array", "what"),
    [
        (MOMENTS, moments(), ""),
        (MOMENTS, np.zeros((8, 4, 4), np.float16), "0 for every value of its mean"),
        (
            MOMENTS,
            np.concatenate([moments()[:4] * 0 + np.float16(0.5), moments()[4:]]),
            "0.5 for every value",
        ),
        (MOMENTS, np.concatenate([moments()[:4], moments()[4:] * 0]), "no standard deviation but 0"),
        (MOMENTS, np.concatenate([moments()[:4], moments()[4:] * np.float16(-0.0)]), "no standard deviation"),
        (MOMENTS, np.concatenate([moments()[:4] * 0 + 65504, moments()[4:]]).astype(np.float16), "65504"),
        (MOMENTS, np.where(moments() > 1, 65504, moments()).astype(np.float16), "end of float16"),
        (TEXT, np.zeros((3, 6), np.float16), "0 for every value"),
        (TEXT, np.zeros((0, 6), np.float16), "no token"),
        (TEXT, np.arange(18, dtype=np.float16).reshape(3, 6), ""),
        (POOLED, np.zeros(6, np.float16), "0 for every value"),
        (POOLED, np.arange(6, dtype=np.float16), ""),
    ],
)
def test_values_that_no_encoder_gives(spec: Any, array: np.ndarray[Any, Any], what: str) -> None:
    fault = value_fault(array, spec)
    assert what in fault and bool(what) == bool(fault)


def test_values_that_no_encoder_gives_are_told_of_in_a_shard(shards: Path) -> None:
    samples = {f"u1-{i}": members_of(f"u1-{i}", f"caption u1-{i}", 1, i) for i in range(5)}
    samples["u1-1"]["caption_latents.npy"] = npy_bytes(np.zeros((3, 6), np.float16))
    rewrite(shards, samples)
    assert (only(shards).key, only(shards).what) == ("u1-1", "caption_latents.npy has 0 for every value")


# --- what could not be read ---


def fails(error: Exception, name: str) -> Callable[..., Any]:
    """A store's `read` and `open` that fail for one file."""
    whole = {"read": Store.read, "open": Store.open}

    def method(kind: str) -> Callable[..., Any]:
        def replaced(store: Store, wanted: str, *rest: Any) -> Any:
            if wanted == name:
                raise error
            return whole[kind](store, wanted, *rest)

        return replaced

    return method


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError("HTTP 500"), TypeError("cache_type")]
)
@pytest.mark.parametrize(
    "name", ["train-00001.json", "train-00001.tar", "train-00001.parquet", MANIFEST, NULL_CAPTION]
)
def test_what_could_not_be_read_is_one_line_and_no_damage(
    shards: Path,
    name: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = fails(error, name)
    monkeypatch.setattr(Store, "read", method("read"))
    monkeypatch.setattr(Store, "open", method("open"))
    assert verify.run(verify.Config(str(shards))) == 3
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2 and told[0].startswith(name.removesuffix(".json") if "train" in name else name)
    assert "could not be read" in told[0] and "emove" not in told[0]
    assert "1 file could not be read" in told[1]


def test_a_fault_beside_what_could_not_be_read_is_a_fault(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / "train-00000.tar").unlink()
    monkeypatch.setattr(Store, "open", fails(OSError("no route"), "train-00001.tar")("open"))
    assert verify.run(verify.Config(str(shards))) == 1


@pytest.mark.parametrize("text", ["{", ""])
def test_an_unreadable_marker_is_one_line(shards: Path, text: str) -> None:
    (shards / "train-00001.json").write_text(text)
    assert only(shards).shard == "train-00001"


def test_control_characters_reach_no_terminal() -> None:
    line = str(Finding("a\x1b[2J", "b\nx: whole", "c\r\x07", "d\x9b"))
    assert line.isprintable()


@pytest.mark.parametrize(
    ("verb", "where"),
    [
        ("verify", "precompute.shards.store.Store.open"),
        ("preview", "precompute.shards.store.Store.read"),
        ("bench", "loader.bench.make_loader"),
        ("download", "builders.download.__main__.datasets.load_dataset_builder"),
    ],
)
def test_ctrl_c_ends_in_one_line(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, where: str
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    what = ["coco", "--data-dir"] if verb == "download" else []
    module = importlib.import_module(VERBS[verb][0])
    monkeypatch.setattr(where, interrupted)
    monkeypatch.setattr("sys.argv", [f"latentmill {verb}", *what, str(shards)])
    with pytest.raises(SystemExit) as ended:
        sys.exit(module.main())
    (told,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 130 and told.startswith("interrupted")


def test_a_sidecar_that_unpacks_to_gigabytes_is_a_fault_and_takes_no_memory(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sidecar_table, "LARGEST", 1 << 20)
    path = shards / "train-00001.parquet"
    table = pq.read_table(path)
    long = table.set_column(table.column_names.index("caption"), "caption", [["x" * (1 << 19)] * len(table)])
    pq.write_table(long.cast(table.schema), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 100_000
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    remark(shards, "train-00001", lambda marker: marker["shards"][0].update(parquet_sha256=sha256))
    assert "unpacks to more than" in findings(shards)[0].what
    assert len(pick_samples(Store(str(shards)), read_markers(Store(str(shards))).markers, "train", 15)) == 10
