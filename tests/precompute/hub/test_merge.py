"""Several folders, splits and pushers on one dataset of the Hub: after each push its files are what its manifest lists."""

import os
import random
import re
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest

from builders.archives import backoff
from builders.archives.backoff import cut_short
from loader.format import MANIFEST, Manifest, Marker
from precompute import push
from precompute.errors import UsageError
from precompute.hub import hub_dataset, retry
from precompute.hub.repository import Repository
from precompute.hub.retry import HOUR, PushError, Refusal
from precompute.push import Config
from precompute.shards.markers import manifest_of
from precompute.shards.unit_writer import SidecarRow
from tests.precompute.hub.test_push import REPO
from tests.support.finished_folder import (
    FIELDS,
    RECIPE,
    members_of,
    unit_writer,
    write_manifest,
    write_shards,
    write_unit,
)
from tests.support.loopback_hub import Blob, LoopbackHub
from tests.support.waiting import hurried


@pytest.fixture
def waits(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the push has waited for, in seconds; it did not take as long."""
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return hurried(seconds)

    monkeypatch.setattr(backoff, "cut_short", wait)
    # The client has waits of its own.
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.01)))
    return waited


def split_folder(output: Path, split: str, units: int) -> Path:
    """A folder with another split of the same recipe."""
    output.mkdir()
    plan = {"dataset": "builders/demo", "units": units, "prepared": False, "limit": None}
    for unit in range(units):
        with unit_writer(output, unit, split=split) as writer:
            for i in range(3):
                key = f"{split}{unit}-{i}"
                writer.write(SidecarRow(key, key, 640, 480, "a.tar"), members_of(key, key, unit, i))
            writer.commit(RECIPE, FIELDS, {**plan, "samples_per_shard": 100}, {"seconds": float(unit)})
    write_manifest(output)
    return output


def files_are_what_the_manifest_lists(hub: LoopbackHub, *, at_each_commit: bool = True) -> Manifest:
    """Its shards and markers, each with its hash, and no others; and the manifest is made of those markers."""
    commits = list(hub.repos[REPO].commits.values())
    for files in commits if at_each_commit else commits[-1:]:
        if MANIFEST not in files:
            continue
        manifest = Manifest.from_json(files[MANIFEST].data)
        markers = {
            path: Marker.from_json(blob.data)
            for path, blob in files.items()
            if re.fullmatch(r"[a-z]+-\d{5}\.json", path)
        }
        listed = set(markers)
        for split in manifest.splits.values():
            for shard in split.shards:
                assert files[f"{shard.path}.tar"].sha256 == shard.sha256
                assert files[f"{shard.path}.parquet"].sha256 == shard.parquet_sha256
                listed |= {f"{shard.path}.tar", f"{shard.path}.parquet"}
        assert {path for path in files if re.search(r"-\d{5}", path)} == listed
        made = manifest_of(manifest.recipe, manifest.fields, markers.values())
        for name, split in made.splits.items():
            assert manifest.splits[name] == split
    return manifest


@pytest.mark.parametrize(("before", "after"), [(3, 100), (100, 3)])
def test_what_a_unit_left_behind_goes_in_the_same_commit(
    hub: LoopbackHub, tmp_path: Path, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--retry-rejected` makes one tar of two, or two of one: stock `datasets` must read each sample once."""
    shards = tmp_path / "latents"
    write_shards(shards, units=2, samples=6, samples_per_shard=before)
    push.push(Config(shards, REPO))
    for path in shards.glob("train-00000*"):
        path.unlink()
    write_unit(shards, 0, 2, samples=5, samples_per_shard=after)
    push.push(Config(shards, REPO))
    files_are_what_the_manifest_lists(hub)
    assert len(hub.repos[REPO].log) == 3
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    keys = [row["__key__"] for row in datasets.load_dataset(REPO, split="train", streaming=True)]
    assert len(keys) == len(set(keys)) == 11


def test_files_of_others_stay(hub: LoopbackHub, tmp_path: Path) -> None:
    """What is in no split of ours, or in a folder that no reader looks into, is not ours to delete."""
    shards = write_shards(tmp_path / "latents", units=1)
    huggingface_hub.HfApi().create_repo(REPO, repo_type="dataset")
    theirs = {name: Blob(b"x", False) for name in ("photos-00001.tar", "old/train-00001.tar", "notes.json")}
    hub.repos[REPO].commit("main", {**hub.repos[REPO].files(), **theirs}, "by hand")
    push.push(Config(shards, REPO))
    assert theirs.keys() <= hub.repos[REPO].files().keys()


def test_whatever_was_there_the_files_of_every_split_are_those_of_the_manifest(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    push.push(Config(split_folder(tmp_path / "validation", "validation", 2), REPO))
    strays = ("train/0000/train-00000.tar", "train-00007.tar", "train-00000-01.parquet")
    readme = Blob(b"---\nlicense: mit\ntags: [mine]\n---\nIn our own words.\n", False)
    by_hand = {"README.md": readme, **dict.fromkeys(strays, Blob(b"x", False))}
    hub.repos[REPO].commit("main", {**hub.repos[REPO].files(), **by_hand}, "by hand")
    push.push(Config(write_shards(tmp_path / "train", units=2), REPO))
    manifest = files_are_what_the_manifest_lists(hub, at_each_commit=False)
    assert {name: split.units_done for name, split in manifest.splits.items()} == {
        "train": 2,
        "validation": 2,
    }
    card = hub.repos[REPO].files()["README.md"].data.decode()
    assert "In our own words." in card and "mine" in card and "split: validation" in card


def test_a_fresh_folder_keeps_the_units_that_only_the_hub_has(hub: LoopbackHub, tmp_path: Path) -> None:
    push.push(Config(write_shards(tmp_path / "old", units=3), REPO))
    before = files_are_what_the_manifest_lists(hub)
    (tmp_path / "new").mkdir()
    write_unit(tmp_path / "new", 1, 3, samples=4)
    push.push(Config(tmp_path / "new", REPO))
    after = files_are_what_the_manifest_lists(hub)
    names = [shard.name for shard in after.splits["train"].shards]
    assert names == ["train-00000", "train-00001", "train-00002"] and after.splits["train"].complete
    assert after.splits["train"].samples == before.splits["train"].samples - 1
    assert after.splits["train"].rejected == {"too_small": 3}


def test_a_manifest_that_had_shrunk_is_whole_again(hub: LoopbackHub, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "old", units=3)
    push.push(Config(shards, REPO))
    files, whole = hub.repos[REPO].files(), hub.repos[REPO].files()[MANIFEST]
    (tmp_path / "new").mkdir()
    write_unit(tmp_path / "new", 1, 3)
    small = (tmp_path / "new" / MANIFEST).read_bytes()
    hub.repos[REPO].commit("main", {**files, MANIFEST: Blob(small, False)}, "of another time")
    push.push(Config(tmp_path / "new", REPO))
    assert hub.repos[REPO].files()[MANIFEST] == whole


def test_the_same_units_made_again_are_not_sent_again(hub: LoopbackHub, tmp_path: Path) -> None:
    """Their markers differ in the time that they took, and in nothing else."""
    push.push(Config(write_shards(tmp_path / "a"), REPO))
    again = write_shards(tmp_path / "b")
    for path in again.glob("train-*.json"):
        path.write_text(path.read_text().replace('"seconds": 2.0', '"seconds": 3.0'))
    commits = len(hub.repos[REPO].log)
    push.push(Config(again, REPO))
    assert len(hub.repos[REPO].log) == commits


def test_a_unit_whose_tar_was_deleted_there_is_listed_no_more(hub: LoopbackHub, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "old", units=3)
    push.push(Config(shards, REPO))
    files = dict(hub.repos[REPO].files())
    del files["train-00002.tar"]
    hub.repos[REPO].commit("main", files, "somebody deletes")
    (tmp_path / "new").mkdir()
    write_unit(tmp_path / "new", 0, 3, samples=4)
    push.push(Config(tmp_path / "new", REPO))
    manifest = files_are_what_the_manifest_lists(hub, at_each_commit=False)
    assert [s.name for s in manifest.splits["train"].shards] == ["train-00000", "train-00001"]
    push.push(Config(shards, REPO))
    assert files_are_what_the_manifest_lists(hub, at_each_commit=False).splits["train"].complete


def test_two_splits_from_two_folders_at_once(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is pushed while the other lies between reading the Hub and its commit."""
    train = write_shards(tmp_path / "train", units=3)
    validation = split_folder(tmp_path / "validation", "validation", 2)
    commit, once = Repository.commit, list[int]()

    def interrupted(repository: Repository, *arguments: object) -> None:
        if not once:
            once.append(1)
            push.push(Config(validation, REPO, delete_pushed=True))
        commit(repository, *arguments)

    monkeypatch.setattr(Repository, "commit", interrupted)
    push.push(Config(train, REPO, delete_pushed=True))
    manifest = files_are_what_the_manifest_lists(hub)
    assert manifest.splits.keys() == {"train", "validation"} and all(
        split.complete for split in manifest.splits.values()
    )
    card = hub.repos[REPO].files()["README.md"].data.decode()
    assert "split: train" in card and "split: validation" in card


@pytest.mark.parametrize("seed", range(20))
def test_two_pushers_at_once_lose_nothing(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Two folders with random units of two splits, some in both, in commits of few files, with faults between."""
    draw = random.Random(seed)
    monkeypatch.setattr(hub_dataset, "FIRST", draw.choice([3, 6, 9]))
    monkeypatch.setattr(hub_dataset, "MOST", 9)
    whole = {"train": write_shards(tmp_path / "whole", units=5, samples=2)}
    whole["validation"] = split_folder(tmp_path / "validation", "validation", 3)
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    for split, count in (("train", 5), ("validation", 3)):
        for unit in range(count):
            for folder in draw.choice([folders[:1], folders[1:], folders]):
                for path in whole[split].glob(f"{split}-{unit:05d}*"):
                    (folder / path.name).write_bytes(path.read_bytes())
    for folder in folders:
        if list(folder.iterdir()):
            write_manifest(folder)
    for status in draw.sample([0, -1, 504, 503], 2):
        hub.fail("POST", "/commit/", status)
    failures: list[BaseException] = []

    def work(folder: Path) -> None:
        try:
            push.push(Config(folder, REPO))
        except Exception as error:  # noqa: BLE001  the test looks at it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    manifest = files_are_what_the_manifest_lists(hub)
    assert {name: split.units_done for name, split in manifest.splits.items()} == {
        "train": 5,
        "validation": 3,
    }


# --- sizes and waits ---


def test_a_commit_too_large_for_the_gateway_is_made_smaller_and_grows_again(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setattr(hub_dataset, "FIRST", 64)
    monkeypatch.setattr(hub_dataset, "MOST", 64)
    hub.commit_limit = 20
    shards = write_shards(tmp_path / "latents", units=20, samples=1)
    push.push(Config(shards, REPO))
    assert files_are_what_the_manifest_lists(hub).splits["train"].complete
    assert 4 <= len(hub.repos[REPO].log) - 1 <= 7, "commits of 16 files or fewer, not one a unit"


@pytest.mark.parametrize("value", ["600", "date"])
def test_retry_after_is_waited_out(
    hub: LoopbackHub, tmp_path: Path, waits: list[float], value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "HOUR", HOUR)
    if value == "date":
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    hub.fail("POST", "/commit/", 429, times=2, headers={"Retry-After": value})
    push.push(Config(write_shards(tmp_path / "latents"), REPO))
    assert sum(300 < seconds <= 600 for seconds in waits) == 2
    files_are_what_the_manifest_lists(hub)


@pytest.mark.parametrize(("seconds", "tries"), [("1800", 3), ("3601", 1), ("1000000000", 1)])
def test_no_more_than_an_hour_is_waited(
    hub: LoopbackHub,
    tmp_path: Path,
    waits: list[float],
    seconds: str,
    tries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "HOUR", HOUR)
    hub.fail("POST", "/commit/", 429, times=99, headers={"Retry-After": seconds})
    with pytest.raises(PushError, match=r"slow down|asks to wait"):
        push.push(Config(write_shards(tmp_path / "latents"), REPO))
    assert hub.asked("POST", "/commit/") == tries and sum(waits) <= 3600


def test_ctrl_c_ends_the_waits_of_all_that_read(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of markers is asked to wait for ten minutes, by a status that the client leaves to us."""
    push.push(Config(write_shards(tmp_path / "old", units=3), REPO))
    waiting = threading.Semaphore(0)

    def wait(seconds: float) -> bool:
        waiting.release()
        return cut_short(seconds)

    def interrupt() -> None:
        if waiting.acquire(timeout=60):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(backoff, "cut_short", wait)
    monkeypatch.setattr(retry, "HOUR", HOUR)
    hub.fail("HEAD", "train-00002.json", 425, times=99, headers={"Retry-After": "600"})
    thread = threading.Thread(target=interrupt)
    thread.start()
    (tmp_path / "new").mkdir()
    write_unit(tmp_path / "new", 0, 3)
    began = time.monotonic()
    # A shell lets what it starts in the background ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            push.push(Config(tmp_path / "new", REPO))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 300
    thread.join()


def test_follow_sits_out_an_outage(hub: LoopbackHub, tmp_path: Path, waits: list[float]) -> None:
    """Patience is over twice, of seven tries that the client makes six of each, and the loop goes on."""
    hub.fail("GET", "/tree/", 503, times=2 * 7 * 6 + 6)
    push.push(Config(write_shards(tmp_path / "latents"), REPO, follow=True))
    assert files_are_what_the_manifest_lists(hub).splits["train"].complete


def test_follow_ends_where_no_later_try_can_help(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail("POST", "/commit/", 403, times=99)
    with pytest.raises(Refusal, match="role `write`"):
        push.push(Config(write_shards(tmp_path / "latents"), REPO, follow=True))


# --- what is there already ---


@pytest.mark.parametrize(
    "header", [b"foo: [1,", b"\tfoo: 1", b"- a\n- b", "license: caf\xe9".encode("latin1")]
)
def test_a_broken_header_is_one_line_that_says_what_to_do(
    hub: LoopbackHub, tmp_path: Path, header: bytes
) -> None:
    shards = write_shards(tmp_path / "latents", units=1)
    huggingface_hub.HfApi().create_repo(REPO, repo_type="dataset")
    mine = {"README.md": Blob(b"---\n" + header + b"\n---\n# mine\n", False)}
    hub.repos[REPO].commit("main", {**hub.repos[REPO].files(), **mine}, "by hand")
    with pytest.raises(Refusal, match=r"README.md there has no header .*[Mm]end it") as caught:
        push.push(Config(shards, REPO))
    assert "\n" not in str(caught.value) and not hub.asked("PUT", "/lfs/")


def test_a_marker_that_is_none_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    push.push(Config(write_shards(tmp_path / "old", units=3), REPO))
    broken = {**hub.repos[REPO].files(), "train-00002.json": Blob(b"{}", False)}
    hub.repos[REPO].commit("main", broken, "by hand")
    (tmp_path / "new").mkdir()
    write_unit(tmp_path / "new", 0, 3)
    with pytest.raises(Refusal, match=r"train-00002.json there cannot be read"):
        push.push(Config(tmp_path / "new", REPO))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("datasets/owner/x", "here owner/x"),
        ("https://huggingface.co/datasets/owner/x", "here owner/x"),
        ("hf://datasets/owner/x@main", "here owner/x"),
        ("owner/-x", "USER/REPO"),
        ("owner/x..y", "USER/REPO"),
        ("owner/x.git", "USER/REPO"),
        ("owner/" + "a" * 97, "USER/REPO"),
        ("öwner/ü", "USER/REPO"),
        ("owner/x\x1b[31m", "USER/REPO"),
    ],
)
def test_a_name_that_cannot_be_is_answered_with_the_one_that_was_meant(
    hub: LoopbackHub, tmp_path: Path, name: str, meant: str
) -> None:
    with pytest.raises(UsageError, match=meant) as caught:
        push.push(Config(write_shards(tmp_path / "latents", units=1), name))
    assert str(caught.value).isprintable() and not hub.requests


def test_offline_says_so(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set"):
        push.push(Config(write_shards(tmp_path / "latents", units=1), REPO))


def test_what_goes_beside_the_shards_is_told(
    hub: LoopbackHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_shards(tmp_path / "latents", units=1)
    (shards / "report.html").write_bytes(b"x" * 2000)
    push.push(Config(shards, REPO))
    said = capsys.readouterr().out
    for name in ("report.html, 2 kB", "README.md", MANIFEST):
        assert f"beside the shards: {name}" in said
    assert said.index("report.html") < said.index("Add 1 units")


def test_the_loopback_hub_refuses_what_the_real_one_refuses(hub: LoopbackHub) -> None:
    api = huggingface_hub.HfApi()
    api.create_repo(REPO, repo_type="dataset")
    first = api.dataset_info(REPO).sha
    add = huggingface_hub.CommitOperationAdd("a.txt", b"a")
    api.create_commit(REPO, [add], commit_message="a", repo_type="dataset", parent_commit=first)
    again = huggingface_hub.CommitOperationAdd("b.txt", b"b")
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="412"):
        api.create_commit(REPO, [again], commit_message="b", repo_type="dataset", parent_commit=first)
    gone = huggingface_hub.CommitOperationDelete("nowhere.txt", is_folder=False)
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="404"):
        api.create_commit(REPO, [gone], commit_message="c", repo_type="dataset")
