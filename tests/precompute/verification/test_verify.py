"""Every kind of damage has its line, with shard, key and cure; a clean dataset has none."""

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from loader.format import MANIFEST, npy_bytes
from precompute import run, verify
from precompute.shards.markers import read_marker
from precompute.shards.output_folder import write_file
from precompute.shards.tar_writer import TarWriter
from precompute.shards.unit_writer import SidecarRow
from precompute.verification.check_folder import Finding
from tests.support import finished_folder
from tests.support.finished_folder import (
    FIELDS,
    RECIPE,
    members_of,
    unit_writer,
    write_manifest,
    write_shards,
    write_unit,
)
from tests.support.forked import run_command
from tests.support.launching import TOY, few_of_demo


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "latents")


def findings(output: Path, **flags: object) -> list[Finding]:
    config = verify.Config(str(output), **flags)
    return verify.verify(config).findings


def only(output: Path, **flags: object) -> Finding:
    found = findings(output, **flags)
    assert len(found) == 1, [str(finding) for finding in found]
    assert found[0].cure
    return found[0]


def remark(output: Path, stem: str, change: Callable[[dict], None]) -> None:
    """Edit a marker, and the manifest that follows from it."""
    marker = json.loads((output / f"{stem}.json").read_text())
    change(marker)
    (output / f"{stem}.json").write_text(json.dumps(marker))
    write_manifest(output)


def rewrite(output: Path, samples: dict[str, dict[str, bytes]], listed: dict[str, str] | None = None) -> None:
    """Unit 1 anew, as a faulty precompute might have written it: hashes and counts are right, the values are not."""
    for path in output.glob("train-00001.*"):
        path.unlink()
    plan = read_marker(output / "train-00000.json").plan
    with unit_writer(output, 1) as writer:
        for key, members in samples.items():
            writer.write(SidecarRow(key, (listed or {}).get(key, f"caption {key}"), 640, 480), members)
        writer.commit(RECIPE, FIELDS, plan, {})
    write_manifest(output)


@pytest.mark.parametrize("samples_per_shard", [100, 2])
@pytest.mark.parametrize("quick", [False, True])
def test_a_clean_dataset_has_no_finding(tmp_path: Path, samples_per_shard: int, quick: bool) -> None:
    output = write_shards(tmp_path / "latents", samples_per_shard=samples_per_shard)
    report = verify.verify(verify.Config(str(output), quick=quick))
    assert report.findings == []
    assert report.splits == {"train": {"samples": 15, "rejected": 3, "rows": 18}}
    assert report.shards == 3 * (1 if samples_per_shard == 100 else 3)


def test_a_unit_of_rejects_alone_is_whole(tmp_path: Path) -> None:
    assert findings(write_shards(tmp_path, samples=0)) == []


def test_companions_and_hidden_files_are_no_fault(shards: Path) -> None:
    for name in ("README.md", "preview.png", "report.html", ".gitattributes"):
        (shards / name).touch()
    (shards / ".work").mkdir(exist_ok=True)
    assert findings(shards) == []


# --- damage after writing ---


def test_a_flipped_bit_anywhere_is_found(shards: Path) -> None:
    tar = shards / "train-00001.tar"
    whole = tar.read_bytes()
    for position in np.random.default_rng(0).integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(position) % 8
        tar.write_bytes(damaged)
        found = findings(shards)
        assert found and {finding.shard for finding in found} == {"train-00001"}, position
        assert "remove train-00001.json" in found[0].cure


def test_a_flipped_bit_in_the_sidecar(shards: Path) -> None:
    sidecar = shards / "train-00001.parquet"
    data = bytearray(sidecar.read_bytes())
    data[len(data) // 2] ^= 4
    sidecar.write_bytes(data)
    finding = only(shards)
    assert finding.shard == "train-00001" and ".parquet" in finding.what and "sha256" in finding.what


@pytest.mark.parametrize("kept", [0, 100, 512, 1024, 5000, -512, -10240])
def test_a_truncated_tar(shards: Path, kept: int) -> None:
    tar = shards / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:kept])
    assert only(shards).shard == "train-00001"
    assert "bytes, its marker says" in only(shards, quick=True).what


def test_a_tar_with_something_behind_its_end(shards: Path) -> None:
    with open(shards / "train-00001.tar", "ab") as file:
        file.write(b"more")
    assert "goes on behind its end" in only(shards).what


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("suffix", ["tar", "parquet"])
def test_a_marker_without_its_file(shards: Path, suffix: str, quick: bool) -> None:
    (shards / f"train-00001.{suffix}").unlink()
    finding = only(shards, quick=quick)
    assert finding.shard == "train-00001" and f"train-00001.{suffix}, which is not there" in finding.what


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", ["train-00007", "train-00001-07"])
def test_a_tar_without_marker(shards: Path, quick: bool, name: str) -> None:
    """A finished unit is not helped by another run."""
    shutil.copy(shards / "train-00001.tar", shards / f"{name}.tar")
    finding = only(shards, quick=quick)
    assert finding.shard == name and f"no marker lists {name}.tar" in finding.what
    assert finding.cure.startswith("remove it") and ("again" in finding.cure) == (name == "train-00007")


@pytest.mark.parametrize("name", ["notes.txt", "train.tar", "train-00001.tar.partial", "extra.json"])
def test_a_foreign_file(shards: Path, name: str) -> None:
    (shards / name).write_text("?")
    assert only(shards) == Finding(name, "", "a foreign file", "move it elsewhere")


def test_the_sidecar_of_another_run(shards: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", samples=4)
    shutil.copy(other / "train-00001.parquet", shards / "train-00001.parquet")
    assert "not the one that the marker was written with" in only(shards).what


def test_a_unit_that_is_not_done(shards: Path) -> None:
    for path in shards.glob("train-00002.*"):
        path.unlink()
    write_manifest(shards)
    assert only(shards).what == "2 of 3 units are finished"


@pytest.mark.parametrize("flags", [[], ["--quick"], ["--source", "builders/demo"]])
def test_a_run_that_was_ended_before_its_first_unit_is_not_whole(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(session: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "work", interrupted)
    monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
    monkeypatch.setattr("sys.argv", ["run.py", *map(str, few_of_demo(8, tmp_path / "out")), *TOY])
    with pytest.raises(SystemExit) as ended:
        run.main()
    assert ended.value.code == 130 and "run the same command again" in capsys.readouterr().err
    done = run_command("precompute/verify.py", str(tmp_path / "out"), *flags)
    assert done.returncode == 1 and "0 of 2 units are finished" in done.stdout + done.stderr


def test_a_manifest_of_before(shards: Path) -> None:
    old = (shards / MANIFEST).read_text()
    (shards / MANIFEST).write_text(old.replace('"samples": 5', '"samples": 6', 1))
    assert only(shards).shard == MANIFEST
    (shards / MANIFEST).unlink()
    assert only(shards).what == "missing"
    (shards / MANIFEST).write_text("{")
    assert only(shards).what.startswith("unreadable")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', "[" * 100_000])
def test_a_broken_marker(shards: Path, text: str) -> None:
    (shards / "train-00001.json").write_text(text)
    found = findings(shards)
    assert found[0].shard == "train-00001" and "marker is unreadable" in found[0].what


def places(value: object, place: tuple = ()) -> Iterator[tuple]:
    """The way to each value in a JSON document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield (*place, name)
        yield from places(inner, (*place, name))


@pytest.mark.parametrize("odd", [None, "../../x", -1, 10**30, 1.5, [], {}, True])
@pytest.mark.parametrize("name", ["train-00001.json", MANIFEST])
def test_nothing_that_a_marker_may_hold_ends_in_a_traceback(shards: Path, name: str, odd: object) -> None:
    whole = (shards / name).read_text()
    for place in places(json.loads(whole)):
        damaged = value = json.loads(whole)
        for step in place[:-1]:
            value = value[step]
        counts = place[-1] in ("samples", "rows", "bytes", "unit", "units", "too_small")
        counts = counts and name != MANIFEST and value[place[-1]] != odd
        value[place[-1]] = odd
        (shards / name).write_text(json.dumps(damaged))
        lines = [str(finding) for finding in findings(shards, quick=True, num_threads=1)]
        assert (lines or not counts) and not any("\n" in line for line in lines), place


def test_a_unit_of_another_recipe(shards: Path) -> None:
    for path in shards.glob("train-00001.*"):
        path.unlink()
    write_unit(shards, 1, recipe={**RECIPE, "posterior": "mode"})
    finding = only(shards)
    assert finding.shard == "train-00001" and "posterior: 'moments' there, 'mode' here" in finding.what


def test_a_marker_whose_rejects_are_made_up(shards: Path) -> None:
    remark(shards, "train-00001", lambda marker: marker.update(rejected={"undecodable": 1}))
    finding = only(shards)
    assert finding.shard == "train-00001" and "undecodable" in finding.what


# --- damage in the writing ---


def unit_1() -> dict[str, dict[str, bytes]]:
    return {f"u1-{i}": members_of(f"u1-{i}", f"caption u1-{i}", 1, i) for i in range(3)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("member", ["moments_32.npy", "caption_latents.npy"])
def test_a_value_that_is_not_finite(shards: Path, value: float, member: str) -> None:
    samples = unit_1()
    array = np.load(io.BytesIO(samples["u1-1"][member]))
    array.flat[-1] = value
    samples["u1-1"][member] = npy_bytes(array)
    rewrite(shards, samples)
    finding = only(shards)
    assert (finding.shard, finding.key) == ("train-00001", "u1-1")
    assert finding.what == f"{member} has 1 of {array.size} values that are not finite"


def test_a_negative_standard_deviation(shards: Path) -> None:
    samples = unit_1()
    array = np.load(io.BytesIO(samples["u1-1"]["moments_32.npy"]))
    samples["u1-1"]["moments_32.npy"] = npy_bytes(np.concatenate([array[4:], -array[4:]]))
    rewrite(shards, samples)
    assert "negative standard deviation" in only(shards).what


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (npy_bytes(np.zeros((8, 4, 4), np.float32)), "is float32, not float16"),
        (npy_bytes(np.zeros((8, 4, 5), np.float16)), "has shape (8, 4, 5), not (8, 4, 4)"),
        (npy_bytes(np.zeros((8, 16), np.float16)), "has shape (8, 16)"),
        (npy_bytes(np.zeros((8, 4, 4), np.float16))[:-2], "is broken"),
        (b"", "is broken"),
        (b"\x93NUMPY\x01\x00\xff\xff", "is broken"),
    ],
)
def test_an_array_of_another_kind(shards: Path, data: bytes, what: str) -> None:
    samples = unit_1()
    samples["u1-2"]["moments_32.npy"] = data
    rewrite(shards, samples)
    finding = only(shards)
    assert finding.key == "u1-2" and what in finding.what


def test_a_shape_unlike_the_others_of_its_shard(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard's images may have any shape where there are buckets, but all the same one."""
    free = (dataclasses.replace(FIELDS[0], shape=(8, None, None)), FIELDS[1])
    monkeypatch.setattr(finished_folder, "FIELDS", free)
    monkeypatch.setattr(sys.modules[__name__], "FIELDS", free)
    output = write_shards(shards.parent / "free")
    assert findings(output) == []
    samples = unit_1()
    samples["u1-1"]["moments_32.npy"] = npy_bytes(np.ones((8, 2, 8), np.float16))
    rewrite(output, samples)
    finding = only(output)
    assert finding.key == "u1-1" and finding.what.endswith(
        "has shape (8, 2, 8), others of the shard (8, 4, 4)"
    )


@pytest.mark.parametrize("member", ["moments_32", "txt"])
def test_a_missing_member(shards: Path, member: str) -> None:
    def lose(infos: list[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
        return [i for i in infos if not i.name.startswith(f"u1-3.{member}")]

    retar(shards, lose)
    found = [finding for finding in findings(shards) if "missing" in finding.what]
    assert [(f.shard, f.key) for f in found] == [("train-00001", "u1-3")] and member in found[0].what


def test_a_doubled_sample(shards: Path) -> None:
    retar(shards, lambda infos: infos + infos[:4])
    assert ("u1-0", "the key occurs twice in the .tar") in [(f.key, f.what) for f in findings(shards)]


def test_a_doubled_member(shards: Path) -> None:
    retar(shards, lambda infos: infos[:1] + infos)
    assert ("u1-0", "member moments_32.npy occurs twice") in [(f.key, f.what) for f in findings(shards)]


def test_samples_in_another_order(shards: Path) -> None:
    retar(shards, lambda infos: infos[4:8] + infos[:4] + infos[8:])
    assert "the samples are not in the order of the .parquet" in [f.what for f in findings(shards)]


def test_a_foreign_member(shards: Path) -> None:
    samples = unit_1()
    with tarfile.open(shards / "train-00001.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("u1-4.exe"))
    assert ("u1-4", "a foreign member 'exe'") in [(f.key, f.what) for f in findings(shards)]
    assert samples


def retar(output: Path, change: Callable[[list[tarfile.TarInfo]], list[tarfile.TarInfo]]) -> None:
    """Unit 1's tar with other members, under a marker that believes in it."""
    path = output / "train-00001.tar"
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
        data = {info.name: tar.extractfile(info).read() for info in infos}
    path.unlink()
    writer = TarWriter(path)
    for info in change(infos):
        writer.add(info.name, data[info.name])
    sha256 = writer.close().result()

    def believe(marker: dict) -> None:
        marker["shards"][0].update(bytes=writer.position, sha256=sha256)

    remark(output, "train-00001", believe)


def test_a_caption_that_the_sidecar_does_not_have(shards: Path) -> None:
    rewrite(shards, unit_1(), listed={"u1-0": "caption u1-1"})
    finding = only(shards)
    assert finding.key == "u1-0" and "txt is not the caption" in finding.what


@pytest.mark.parametrize(
    ("member", "data"), [("txt", b"\xff"), ("txt", b"  "), ("json", b"{"), ("json", b"[]")]
)
def test_text_that_is_none(shards: Path, member: str, data: bytes) -> None:
    samples = unit_1()
    samples["u1-0"][member] = data
    rewrite(shards, samples)
    finding = only(shards)
    assert finding.key == "u1-0" and finding.what.startswith(member)


def test_a_key_that_webdataset_would_split(shards: Path) -> None:
    rewrite(shards, {"a.b": members_of("a.b", "caption a.b")})
    assert "'a.b'" in [finding.key for finding in findings(shards)]


def test_a_doubled_key_in_the_sidecar(shards: Path) -> None:
    sidecar = pq.read_table(shards / "train-00001.parquet")
    rows = sidecar.to_pylist()
    rows[1]["key"] = rows[0]["key"]
    out = io.BytesIO()
    pq.write_table(sidecar.from_pylist(rows, schema=sidecar.schema), out)
    write_file(shards / "train-00001.parquet", out.getvalue())
    sha256 = hashlib.sha256(out.getvalue()).hexdigest()
    remark(shards, "train-00001", lambda marker: marker["shards"][0].update(parquet_sha256=sha256))
    found = [(f.key, f.what) for f in findings(shards)]
    assert ("u1-0", "the key occurs twice in the .parquet") in found
    assert ("u1-1", "the .tar holds a sample that the .parquet does not list") in found


def test_a_key_in_two_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, units=2)
    for path in tmp_path.glob("train-00001.*"):
        path.unlink()
    write_unit(tmp_path, 1, 2, keys=["a", "b", "u0-3", "c", "d"])
    finding = only(tmp_path)
    assert (finding.shard, finding.key, finding.what) == (
        "train-00001",
        "u0-3",
        "the key is in train-00000 already",
    )


# --- the command ---


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("precompute/verify.py", *arguments)


def test_the_command_ends_with_0_or_1_and_says_why(shards: Path) -> None:
    result = command(str(shards))
    assert result.returncode == 0 and "whole. 15 written + 3 rejected = 18 rows in 3 shards" in result.stdout
    (shards / "train-00001.tar").unlink()
    result = command(str(shards))
    assert result.returncode == 1 and result.stdout.startswith("train-00001: ") and "1 fault" in result.stdout


def test_json_is_for_machines(shards: Path) -> None:
    (shards / "x").touch()
    result = command(str(shards), "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 1 and not report["whole"]
    assert report["findings"] == [dataclasses.asdict(Finding("x", "", "a foreign file", "move it elsewhere"))]
    assert report["splits"]["train"] == {"samples": 15, "rejected": 3, "rows": 18}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere: cannot list it"),
        ((".",), "no shards there"),
        (("hf://datasets/nobody/nothing",), "hf://datasets/nobody/nothing: cannot list it"),
        ((".", "--decode", "-1"), "--decode: give a positive number"),
        ((".", "--vae", "vae"), "--vae: nothing is decoded; say how many: `"),
        ((".", "--text-encoder", "t5"), "--text-encoder: nothing is decoded"),
        ((".", "--data-dir", "raw"), "--data-dir: the source is not read; give --source DATASET"),
        ((".", "--options", "parts=1"), "--options: the source is not read"),
        ((".", "--decode", "4", "--data-dir", "/nowhere"), "--data-dir /nowhere: no such folder"),
    ],
)
def test_bad_flags_are_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    first = str(tmp_path) if arguments[0] == "." else arguments[0]
    result = command(first, *arguments[1:])
    assert (
        result.returncode == 2
        and result.stderr.startswith("error: ")
        and len(result.stderr.splitlines()) == 1
        and message in result.stderr
    )
