"""The main job under a real `accelerate launch`: what it writes, who can read it, and that it is always the same."""

import contextlib
import gc
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

import builders
from loader.format import Manifest, Marker, Split
from tests.support.forked import Forked, run_command
from tests.support.judges import samples_by_tarfile
from tests.support.launching import ROOT, TOY, environment, leftovers, run_precompute, tars
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

MEMBERS = ["moments_256.npy", "moments_512.npy", "caption_latents.npy", "txt", "json"]


@pytest.fixture(scope="module")
def demo_rows() -> list[dict[str, object]]:
    return list(
        builders.load_dataset("builders/demo", split="train", streaming=True, keep_rejected=True).decode(
            False
        )
    )


def test_every_demo_row_is_written_or_rejected(demo_shards: Path, demo_rows: list[dict[str, object]]) -> None:
    manifest = Manifest.from_json((demo_shards / "manifest.json").read_bytes())
    train = manifest.splits["train"]
    assert train.complete
    assert train.rows == len(demo_rows) == train.samples + sum(train.rejected.values())
    assert train.samples >= 18
    assert set(samples_by_tarfile(demo_shards)) == {row["key"] for row in demo_rows if row["reject"] is None}
    table = [
        row
        for shard in train.shards
        for row in pq.read_table(demo_shards / f"{shard.name}.parquet").to_pylist()
    ]
    assert [(row["key"], row["status"]) for row in table] == [
        (r["key"], r["reject"] or "ok") for r in demo_rows
    ]


def test_members_are_as_the_manifest_says(demo_shards: Path) -> None:
    manifest = Manifest.from_json((demo_shards / "manifest.json").read_bytes())
    for key, members in samples_by_tarfile(demo_shards).items():
        assert list(members) == MEMBERS, key
        for field in manifest.fields:
            array = np.load(io.BytesIO(members[field.member]), allow_pickle=False)
            assert (array.dtype.name, array.shape) == (field.dtype, field.shape)
            assert np.isfinite(array).all()
    null = np.load(demo_shards / "null_caption.npz", allow_pickle=False)
    assert null["caption_latents"].shape == manifest.field("caption_latents").shape


def test_sidecar_says_where_each_member_lies(demo_shards: Path) -> None:
    expected = samples_by_tarfile(demo_shards)
    for path in demo_shards.glob("*.parquet"):
        data = path.with_suffix(".tar").read_bytes()
        for row in pq.read_table(path).to_pylist():
            if row["status"] == "ok":
                for extension, contents in expected[row["key"]].items():
                    name = extension.removesuffix(".npy")
                    offset, size = row[f"offset_{name}"], row[f"size_{name}"]
                    assert data[offset : offset + size] == contents


def test_captions_and_sizes_are_those_of_the_right_picture(
    demo_shards: Path, demo_rows: list[dict[str, object]]
) -> None:
    found = samples_by_tarfile(demo_shards)
    for row in demo_rows:
        if row["reject"] is None:
            members = found[row["key"]]
            about = json.loads(members["json"])
            assert members["txt"].decode() == row["caption"]
            assert (about["width"], about["height"], about["source"]) == (
                row["width"],
                row["height"],
                row["source"],
            )
            assert about["extras"]["captions"] == row["captions"]
            left, top, right, bottom = about["crop"]
            assert right - left == bottom - top == min(row["width"], row["height"])


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_the_shards(demo_shards: Path) -> None:
    urls = [str(path) for path in sorted(demo_shards.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
    assert [sample["__key__"] for sample in read] == list(samples_by_tarfile(demo_shards))
    assert all(sample["moments_256.npy"].shape == (8, 32, 32) for sample in read)
    assert all(isinstance(sample["txt"], str) and sample["json"]["width"] for sample in read)
    gc.collect()  # webdataset leaves its last file to the garbage collector


def test_stock_datasets_reads_the_shards(demo_shards: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(demo_shards.glob("*.tar"))]
    read = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))
    assert read["__key__"] == list(samples_by_tarfile(demo_shards))
    assert np.asarray(read[0]["moments_256.npy"]).shape == (8, 32, 32)


def test_tar_lists_the_shards(demo_shards: Path) -> None:
    listed = subprocess.run(
        ["tar", "-tf", str(demo_shards / "train-00000.tar")], check=True, text=True, capture_output=True
    )
    keys = list(dict.fromkeys(line.split(".")[0] for line in listed.stdout.split()))
    assert listed.stdout.split() == [f"{key}.{member}" for key in keys for member in MEMBERS]


def test_two_processes_of_accelerate_write_the_same_bytes(demo_shards: Path, tmp_path: Path) -> None:
    run_precompute("builders/demo", "--output", tmp_path / "out", *TOY, processes=2, launcher=True)
    assert tars(tmp_path / "out") == tars(demo_shards)
    assert not leftovers(tmp_path / "out")


def test_three_independent_processes_write_the_same_bytes(demo_shards: Path, tmp_path: Path) -> None:
    command = ("precompute/run.py", "builders/demo", "--output", tmp_path / "out", *TOY)
    for process in [Forked(*command) for _ in range(3)]:
        done = process.wait()
        assert done.returncode == 0, done.stderr
    assert tars(tmp_path / "out") == tars(demo_shards)
    assert not leftovers(tmp_path / "out")


def test_torchrun_starts_a_killed_worker_anew_and_all_is_done(demo_shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--monitor-interval", "0.1", "precompute/run.py", "builders/demo", "--output", str(output)]
    command += [*TOY[:-1], "1", "--num-threads", "1"]  # slow enough to be caught in the middle
    talking = {**environment(), "LOGLEVEL": "INFO"}
    launched = subprocess.Popen(command, cwd=ROOT, env=talking, stderr=subprocess.PIPE, text=True)
    victim, deadline = None, time.monotonic() + 120
    while victim is None and time.monotonic() < deadline:
        for lease in output.glob(".work/train-*.lease-1"):
            with contextlib.suppress(OSError, ValueError):  # being written, or given back
                victim = json.loads(lease.read_text())["pid"]
    os.kill(victim, signal.SIGKILL)
    _, errors = launched.communicate(timeout=300)
    assert launched.returncode == 0, errors
    assert "will restart worker group" in errors, "it was to be killed, and was through already"
    assert tars(output) == tars(demo_shards)
    assert not leftovers(output)


def test_killed_half_way_and_run_again_writes_the_same_bytes(demo_shards: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    # One image a batch and one thread: slow enough to be caught in the middle.
    slow = [*TOY[:-1], "1", "--num-threads", "1"]
    killed = Forked("precompute/run.py", "builders/demo", "--output", output, *slow)
    deadline = time.monotonic() + 120
    while not list(output.glob("train-*.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.process.kill()
    killed.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in output.glob("train-*.json")}
    assert 0 < len(finished) < 4, "the process was to be killed in the middle"
    assert leftovers(output), "and to leave something half done"
    # The batch size determines no value: each row of these models is computed alone.
    run_precompute("builders/demo", "--output", output, *TOY)
    assert tars(output) == tars(demo_shards)
    assert not leftovers(output)
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == finished


def test_finished_units_are_not_done_again(demo_shards: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in demo_shards.glob("train-*")}
    done = run_precompute("builders/demo", "--output", demo_shards, *TOY)
    assert "4 of 4 units finished before" in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in demo_shards.glob("train-*")} == before


def test_another_recipe_is_refused_with_what_differs(demo_shards: Path) -> None:
    done = run_precompute(
        "builders/demo",
        "--output",
        demo_shards,
        *TOY,
        "--resolutions",
        "256",
        "--posterior",
        "mode",
        check=False,
    )
    assert done.returncode != 0
    assert "--output" in done.stderr
    assert "posterior: 'moments' there, 'mode' here" in done.stderr
    assert "resolutions: [256, 512] there, [256] here" in done.stderr
    assert "weights" not in done.stderr, "only what differs is named"


@pytest.mark.parametrize("dataset", ["builders/folder", "imagefolder"])
def test_changed_source_is_not_resumed_into(tmp_path: Path, dataset: str) -> None:
    photos, output = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    rows = []
    for row in builders.load_dataset("builders/demo", split="train", streaming=True).decode(False).take(4):
        (photos / f"{row['key']}.png").write_bytes(row["image"]["bytes"])
        rows.append(json.dumps({"file_name": f"{row['key']}.png", "caption": row["caption"]}))
    last = photos / json.loads(rows[-1])["file_name"]
    (tmp_path / "later.png").write_bytes(last.read_bytes())
    last.unlink()
    (photos / "metadata.jsonl").write_text("\n".join(rows[:3]))
    arguments = (dataset, "--data-dir", photos, "--output", output, *TOY, "--resolutions", "64")
    run_precompute(*arguments)
    (tmp_path / "later.png").rename(last)
    (photos / "metadata.jsonl").write_text("\n".join(rows))
    done = run_precompute(*arguments, check=False)
    assert done.returncode != 0
    assert "plan.sources" in done.stderr


def test_prepared_dataset_gives_the_same_samples(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    run_precompute(
        "builders/demo", "--output", tmp_path / "out", *TOY, "--prepare", "--samples-per-shard", "8"
    )
    assert samples_by_tarfile(tmp_path / "out") == samples_by_tarfile(demo_shards)
    assert [path.name for path in sorted((tmp_path / "out").glob("*.tar"))] == [
        f"train-0000{unit}.tar" for unit in range(3)
    ]


def test_large_unit_becomes_several_shards_under_one_marker(demo_shards: Path, tmp_path: Path) -> None:
    run_precompute("builders/demo", "--output", tmp_path / "out", *TOY, "--samples-per-shard", "2")
    names = [path.name for path in sorted((tmp_path / "out").glob("train-00000*"))]
    stems = [name.removesuffix(".tar") for name in names if name.endswith(".tar")]
    assert stems == ["train-00000-01", "train-00000-02", "train-00000-03"]
    assert sorted(names) == sorted(
        [f"{s}{e}" for s in stems for e in (".tar", ".parquet")] + ["train-00000.json"]
    )
    marker = Marker.from_json((tmp_path / "out" / "train-00000.json").read_bytes())
    assert [shard.name for shard in marker.shards] == stems
    assert samples_by_tarfile(tmp_path / "out") == samples_by_tarfile(demo_shards)


def test_limit_takes_the_first_source_rows(
    demo_shards: Path, tmp_path: Path, demo_rows: list[dict[str, object]]
) -> None:
    run_precompute("builders/demo", "--output", tmp_path / "out", *TOY, "--limit", "8")
    first = [row["key"] for row in demo_rows[:8] if row["reject"] is None]
    assert list(samples_by_tarfile(tmp_path / "out")) == first
    train = Manifest.from_json((tmp_path / "out" / "manifest.json").read_bytes()).splits["train"]
    assert train.complete and train.rows == 8


@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_scaled_latents_follow_from_the_moments(demo_shards: Path, tmp_path: Path, posterior: str) -> None:
    run_precompute(
        "builders/demo", "--output", tmp_path / "out", *TOY, "--posterior", posterior, "--limit", "6"
    )
    field = Manifest.from_json((demo_shards / "manifest.json").read_bytes()).field("moments_256")
    moments = samples_by_tarfile(demo_shards)
    for key, members in samples_by_tarfile(tmp_path / "out").items():
        mean, std = np.split(np.load(io.BytesIO(moments[key]["moments_256.npy"])).astype(np.float32), 2)
        latents = np.load(io.BytesIO(members["latents_256.npy"])).astype(np.float32)
        noise = (latents / field.scale + field.shift - mean) / std
        if posterior == "mode":
            assert np.abs(latents - (mean - field.shift) * field.scale).max() < 2e-3
        else:
            assert abs(noise.mean()) < 0.1
            assert abs(noise.std() - 1) < 0.1


def test_flipped_and_bucketed_shards_verify(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_precompute(
        "builders/demo", "--output", output, *TOY, "--resolutions", "128", "256", "--flip", "--buckets", "64"
    )
    done = run_command("precompute/verify.py", output, "--decode", "20")
    assert done.returncode == 0, done.stdout
    assert ": whole. " in done.stdout


def test_dataset_that_is_not_ours_by_column_names(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = builders.load_dataset("builders/demo", split="train", streaming=True).decode(False).take(3)
    captions = []
    for row in rows:
        photo = row["image"]["bytes"]
        (photos / f"{row['key']}.png").write_bytes(photo)
        captions.append(json.dumps({"file_name": f"{row['key']}.png", "text": f" {row['caption']} <br>"}))
    (photos / "empty.png").write_bytes(b"")
    captions.append(json.dumps({"file_name": "empty.png", "text": "nothing at all"}))
    (photos / "dots.png").write_bytes(photo)
    captions.append(json.dumps({"file_name": "dots.png", "text": " . . <br> !"}))
    (photos / "metadata.jsonl").write_text("\n".join(captions))
    output = tmp_path / "out"
    run_precompute(
        "imagefolder",
        "--data-dir",
        photos,
        "--caption-column",
        "text",
        "--output",
        output,
        *TOY,
        "--resolutions",
        "256",
    )
    train = Manifest.from_json((output / "manifest.json").read_bytes()).splits["train"]
    assert (train.samples, train.rejected) == (3, {"undecodable": 1, "empty_caption": 1})
    texts = {members["txt"].decode() for members in samples_by_tarfile(output).values()}
    assert texts == {json.loads(line)["text"].removesuffix(" <br>").strip() for line in captions[:3]}


def test_units_with_rows_of_a_reason_are_done_again_on_request(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "out"
    for number in range(2):
        members = [
            (f"k{i}.{suffix}", data) for i in range(3) for suffix, data in (("jpg", jpeg(i)), ("txt", b"a"))
        ]
        write_tar(raw / f"{number}.tar", members)
    whole = (raw / "1.tar").read_bytes()
    (raw / "1.tar").write_bytes(whole[: len(whole) // 2])
    command = ["builders/webdataset", "--data-dir", raw, "--output", output, *TOY, "--resolutions", "64"]

    def split() -> Split:
        return Manifest.from_json((output / "manifest.json").read_bytes()).splits["train"]

    run_precompute(*command)
    assert split().rejected == {"bad_archive": 1}
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("train-*")}
    (raw / "1.tar").write_bytes(whole)  # downloaded anew
    run_precompute(*command)
    done = run_precompute(*command, "--retry-rejected", "too_small")
    assert "2 of 2 units finished before, 0 to do again" in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("train-*")} == before
    run_precompute(*command, "--retry-rejected", "bad_archive", "too_small", processes=2)
    assert (split().samples, split().rejected) == (6, {})
    again = {path.name for path in output.glob("train-*") if path.stat().st_mtime_ns != before.get(path.name)}
    assert again == {"train-00001.tar", "train-00001.parquet", "train-00001.json"}
    assert not leftovers(output)
