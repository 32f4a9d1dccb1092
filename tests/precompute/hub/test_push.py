"""push.py against a Hub on loopback, with the real client: what is there, in how few commits, and what faults do to it."""

import hashlib
import itertools
import json
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import pytest

from loader.format import MANIFEST, Manifest, Marker
from precompute import push
from precompute.errors import PrecomputeError, UsageError
from precompute.hub import hub_dataset
from precompute.hub.hub_dataset import Target
from precompute.hub.local_dataset import Finished
from precompute.hub.retry import PushError
from precompute.push import Config
from precompute.shards import store
from tests.support import loopback_hub
from tests.support.finished_folder import RECIPE, write_manifest, write_shards, write_unit
from tests.support.loopback_hub import LoopbackHub

REPO = "owner/photos-latents"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the client too."""
    monkeypatch.setattr(time, "sleep", lambda seconds, sleep=time.sleep: sleep(seconds / 100))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "latents")


def few_files(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Each commit holds at most so many."""
    monkeypatch.setattr(hub_dataset, "FIRST", most)
    monkeypatch.setattr(hub_dataset, "MOST", most)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".md"
    }


def there(hub: LoopbackHub, ref: str = "main") -> dict[str, bytes]:
    """What is on the Hub, less what it or the card adds."""
    files = hub.repos[REPO].files(ref)
    return {name: blob.data for name, blob in files.items() if name not in ("README.md", ".gitattributes")}


def never_names_a_missing_shard(hub: LoopbackHub) -> None:
    """The manifest of every commit that ever was names what is there, and its marker is there too."""
    seen = 0
    for files in hub.repos[REPO].commits.values():
        if MANIFEST in files:
            seen += 1
            manifest = Manifest.from_json(files[MANIFEST].data)
            for split in manifest.splits.values():
                for shard in split.shards:
                    assert files[f"{shard.path}.tar"].sha256 == shard.sha256
                    assert files[f"{shard.path}.parquet"].sha256 == shard.parquet_sha256
                markers = [name for name in files if name.startswith("train") and name.endswith(".json")]
                assert len(markers) == split.units_done
    assert seen


def test_all_is_there_byte_for_byte_in_one_commit(hub: LoopbackHub, shards: Path) -> None:
    assert push.push(Config(shards, REPO)) == f"{hub.url}/datasets/{REPO}"
    assert there(hub) == contents(shards)
    assert [ref for ref, _ in hub.repos[REPO].log] == ["main", "main"]  # the first one made the repository
    never_names_a_missing_shard(hub)


def test_a_second_push_sends_nothing(hub: LoopbackHub, shards: Path) -> None:
    push.push(Config(shards, REPO))
    commits, uploads = len(hub.repos[REPO].log), hub.asked("PUT", "/lfs/")
    push.push(Config(shards, REPO))
    assert (len(hub.repos[REPO].log), hub.asked("PUT", "/lfs/")) == (commits, uploads)


def test_only_what_is_new_is_sent(hub: LoopbackHub, shards: Path, tmp_path: Path) -> None:
    for path in shards.glob("train-00002.*"):
        path.rename(tmp_path / path.name)
    write_manifest(shards)
    push.push(Config(shards, REPO))
    uploads = hub.asked("PUT", "/lfs/")
    for path in tmp_path.glob("train-00002.*"):
        path.rename(shards / path.name)
    write_manifest(shards)
    push.push(Config(shards, REPO))
    assert hub.asked("PUT", "/lfs/") == uploads + 2  # a tar and its sidecar
    assert there(hub) == contents(shards)
    never_names_a_missing_shard(hub)


def test_many_units_are_several_commits_each_a_whole_dataset(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_files(monkeypatch, 12)
    shards = write_shards(tmp_path / "latents", units=11, samples=1)
    push.push(Config(shards, REPO))
    assert len(hub.repos[REPO].log) == 1 + 3 and there(hub) == contents(shards)
    never_names_a_missing_shard(hub)


def test_a_commit_holds_few_files_however_many_a_unit_has(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_files(monkeypatch, 20)
    shards = write_shards(tmp_path / "latents", units=5, samples=4, samples_per_shard=1)  # 9 files a unit
    push.push(Config(shards, REPO))
    commits = list(hub.repos[REPO].commits.values())
    sent = [
        {name for name in after if name.startswith("train") and name not in before}
        for before, after in itertools.pairwise(commits)
    ]
    assert [len(names) for names in sent] == [18, 18, 9] and there(hub) == contents(shards)


@pytest.mark.parametrize("status", [0, -1, 408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/commit/"), ("GET", "/tree/"), ("POST", "/api/repos/create")],
)
def test_a_fault_that_passes_is_sat_out(
    hub: LoopbackHub, shards: Path, method: str, path: str, status: int
) -> None:
    hub.fail(method, path, status, times=2)
    push.push(Config(shards, REPO))
    assert there(hub) == contents(shards)
    never_names_a_missing_shard(hub)
    assert len(hub.repos[REPO].log) == 2  # a commit whose answer was lost is not made twice


@pytest.mark.parametrize("status", [0, 503])
def test_a_fault_while_a_file_goes_up_is_sat_out(hub: LoopbackHub, shards: Path, status: int) -> None:
    hub.fail("PUT", "/lfs/", status)
    push.push(Config(shards, REPO))
    assert there(hub) == contents(shards)


@pytest.mark.parametrize(
    ("status", "cure"),
    [
        (401, "hf auth login"),
        (402, "storage is full"),
        (403, "role `write`"),
        (404, "Check USER/REPO"),
        (413, "smaller shards"),
    ],
)
def test_a_refusal_says_what_to_do(hub: LoopbackHub, shards: Path, status: int, cure: str) -> None:
    hub.fail("POST", "/commit/", status, times=99)
    with pytest.raises(PushError, match=cure) as caught:
        push.push(Config(shards, REPO))
    assert str(caught.value).startswith(REPO) and "\n" not in str(caught.value)
    assert "hf_owner" not in str(caught.value)
    hub.faults.clear()
    push.push(Config(shards, REPO))
    assert there(hub) == contents(shards)


def test_a_full_quota_is_told_from_a_missing_right(hub: LoopbackHub, shards: Path) -> None:
    hub.fail("POST", "/commit/", 403, times=99, message="Private repository storage limit exceeded")
    with pytest.raises(PushError, match="storage is full"):
        push.push(Config(shards, REPO))


@pytest.mark.parametrize(
    ("status", "said"), [(503, "out of order"), (429, "slow down"), (0, "connection was lost")]
)
def test_a_fault_that_stays_ends_the_push_and_a_later_one_goes_on(
    hub: LoopbackHub, shards: Path, status: int, said: str
) -> None:
    hub.fail("POST", "/commit/", status, times=99)
    with pytest.raises(PushError, match=said):
        push.push(Config(shards, REPO))
    assert hub.asked("POST", "/commit/") == 7, "a minute of pauses, each twice as long as the one before"
    uploads = hub.asked("PUT", "/lfs/")
    hub.faults.clear()
    push.push(Config(shards, REPO))
    assert hub.asked("PUT", "/lfs/") == uploads  # what had gone up is not sent again
    assert there(hub) == contents(shards)


def test_no_token_and_no_right(
    hub: LoopbackHub, shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(PushError, match="may not write"):
        push.push(Config(shards, REPO))
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(PushError, match="does not accept this token"):
        push.push(Config(shards, REPO))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PushError, match="no token"):
        push.push(Config(shards, REPO))
    assert not hub.repos


@pytest.mark.parametrize("repo", ["photos", "a/b/c", "", "owner/", "own er/x"])
def test_a_wrong_name_is_said_before_anything_is_sent(hub: LoopbackHub, shards: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="USER/REPO"):
        push.push(Config(shards, repo))
    assert not hub.requests


def test_private_needs_a_token_to_be_seen(
    hub: LoopbackHub, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push.push(Config(shards, REPO, private=True))
    assert hub.repos[REPO].private
    api = huggingface_hub.HfApi()
    assert MANIFEST in api.list_repo_files(REPO, repo_type="dataset")
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.list_repo_files(REPO, repo_type="dataset", token=False)


def test_private_is_never_pushed_to_what_is_public(hub: LoopbackHub, shards: Path) -> None:
    huggingface_hub.HfApi().create_repo(REPO, repo_type="dataset")
    with pytest.raises(UsageError, match=r"--private: .* is there already, and public"):
        push.push(Config(shards, REPO, private=True))
    assert there(hub) == {}


def test_a_licence_that_forbids_sharing_asks_for_private(hub: LoopbackHub, tmp_path: Path) -> None:
    recipe = {**RECIPE, "dataset": {"path": "builders/journeydb", "name": "default"}}
    shards = write_shards(tmp_path / "latents", recipe=recipe)
    with pytest.raises(UsageError, match="--private: the licence of the source says"):
        push.push(Config(shards, REPO))
    push.push(Config(shards, REPO, private=True))
    assert there(hub) == contents(shards)


def test_a_branch_is_made_and_main_left_alone(hub: LoopbackHub, shards: Path) -> None:
    assert push.push(Config(shards, REPO, revision="v2")).endswith("/tree/v2")
    assert there(hub, "v2") == contents(shards) and there(hub) == {}
    push.push(Config(shards, REPO, revision="v2"))
    assert len(hub.repos[REPO].log) == 2


def test_a_pull_request_holds_all_commits(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_files(monkeypatch, 6)
    shards = write_shards(tmp_path / "latents", units=5, samples=1)
    assert push.push(Config(shards, REPO, create_pr=True)).endswith("/tree/refs/pr/1")
    assert there(hub, "refs/pr/1") == contents(shards) and there(hub) == {}
    assert [ref for ref, _ in hub.repos[REPO].log] == ["main"] + ["refs/pr/1"] * 3
    push.push(Config(shards, REPO, revision="refs/pr/1"))
    assert len(hub.repos[REPO].log) == 4


def test_a_pull_request_whose_answer_was_lost_is_not_opened_twice(hub: LoopbackHub, shards: Path) -> None:
    hub.fail("POST", "/commit/", -1)
    with pytest.raises(PushError, match="go on with --revision refs/pr/NUMBER"):
        push.push(Config(shards, REPO, create_pr=True))
    assert "refs/pr/2" not in hub.repos[REPO].refs


@pytest.mark.parametrize("status", [409, 412, 429])
def test_a_pull_request_that_was_refused_for_now_is_opened_once_more(
    hub: LoopbackHub, shards: Path, status: int
) -> None:
    hub.fail("POST", "/commit/", status)
    assert push.push(Config(shards, REPO, create_pr=True)).endswith("/tree/refs/pr/1")
    assert there(hub, "refs/pr/1") == contents(shards)


def test_flags_that_contradict(hub: LoopbackHub, shards: Path) -> None:
    for flags in ({"create_pr": True, "delete_pushed": True}, {"create_pr": True, "revision": "v2"}):
        with pytest.raises(UsageError):
            push.push(Config(shards, REPO, **flags))


def test_another_recipe_is_refused(hub: LoopbackHub, shards: Path, tmp_path: Path) -> None:
    push.push(Config(shards, REPO))
    other = write_shards(tmp_path / "other", recipe={**RECIPE, "posterior": "mode"})
    before = there(hub)
    with pytest.raises(PushError, match="posterior: 'moments' there, 'mode' here"):
        push.push(Config(other, REPO))
    assert there(hub) == before


def test_damage_is_not_published(hub: LoopbackHub, shards: Path) -> None:
    tar = shards / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    with pytest.raises(PushError, match=r"train-00001.tar: not what was written.*verify"):
        push.push(Config(shards, REPO))
    assert there(hub) == {}


def test_nothing_to_push(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        push.push(Config(tmp_path / "nowhere", REPO))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PushError, match="no unit is finished"):
        push.push(Config(tmp_path / "empty", REPO))


# --- folders ---


def test_many_units_lie_in_folders_of_a_hundred_on_the_hub_alone(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "UNITS", 2)
    shards = write_shards(tmp_path / "latents", units=3, samples=1)
    for unit in range(2):
        (shards / f"train-0000{unit}.json").rename(tmp_path / f"train-0000{unit}.json")
    push.push(Config(shards, REPO))
    for unit in range(2):
        (tmp_path / f"train-0000{unit}.json").rename(shards / f"train-0000{unit}.json")
    push.push(Config(shards, REPO, delete_pushed=True))
    files = there(hub)
    units = {f"train/000{unit // 2}/train-0000{unit}" for unit in range(3)}
    assert {name.rpartition(".")[0] for name in files if name.startswith("train")} == units
    assert {name.rpartition(".")[2] for name in files if name.startswith("train")} == {
        "tar",
        "parquet",
        "json",
    }
    manifest = Manifest.from_json(files[MANIFEST])
    assert {shard.path for shard in manifest.splits["train"].shards} == units
    assert not list(shards.glob("*.tar")) and len(list(shards.glob("*.parquet"))) == 3
    commits, uploads = len(hub.repos[REPO].log), hub.asked("PUT", "/lfs/")
    push.push(Config(shards, REPO))
    assert (len(hub.repos[REPO].log), hub.asked("PUT", "/lfs/")) == (commits, uploads)
    never_names_a_missing_shard(hub)


def test_a_hundred_units_lie_beside_the_manifest_and_one_more_does_not() -> None:
    folders = [store.hub_folder(Marker("train", 99, {}, (), {"units": units}, ())) for units in (100, 101)]
    assert folders == ["", "train/0000"]
    assert store.hub_folder(Marker("train", 123_456, {}, (), {"units": 200_000}, ())) == "train/1234"


def test_the_hub_takes_no_more_files_in_a_folder(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback_hub, "FILES_IN_FOLDER", 9)
    shards = write_shards(tmp_path / "latents", units=4, samples=1)
    with pytest.raises(PushError, match="can only contain up to 9 files"):
        push.push(Config(shards, REPO))
    monkeypatch.setattr(store, "UNITS", 2)
    push.push(Config(shards, REPO))
    assert sum(name.endswith(".tar") for name in there(hub)) == 4


# --- delete and follow ---


def test_tars_go_once_the_hub_has_them_and_a_second_push_knows(hub: LoopbackHub, shards: Path) -> None:
    before = contents(shards)
    push.push(Config(shards, REPO, delete_pushed=True))
    assert there(hub) == before
    assert set(before) - set(contents(shards)) == {f"train-0000{i}.tar" for i in range(3)}
    push.push(Config(shards, REPO, delete_pushed=True))
    assert there(hub) == before


def test_nothing_is_deleted_that_the_hub_has_not(hub: LoopbackHub, shards: Path) -> None:
    before = contents(shards)

    def corrupt() -> None:
        files = hub.repos[REPO].files()
        files["train-00001.tar"] = files["train-00000.tar"]

    hub.on_commit = corrupt
    with pytest.raises(PushError, match=r"train-00001.tar: the Hub has something else. Nothing was deleted"):
        push.push(Config(shards, REPO, delete_pushed=True))
    assert contents(shards) == before
    hub.on_commit = lambda: None
    push.push(Config(shards, REPO, delete_pushed=True))
    assert there(hub) == before


def test_a_unit_done_again_while_it_was_pushed_keeps_its_new_tar(
    hub: LoopbackHub, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, confirm = contents(shards), Target.confirm

    def late(target: Target, local: Finished, stems: list[str]) -> None:
        confirm(target, local, stems)
        write_unit(shards, 0, samples=4)  # --retry-rejected, by another process
        (shards / "train-00001.json").unlink()  # about to be done again

    monkeypatch.setattr(Target, "confirm", late)
    push.push(Config(shards, REPO, delete_pushed=True))
    assert [path.name for path in sorted(shards.glob("*.tar"))] == ["train-00000.tar", "train-00001.tar"]
    new = (shards / "train-00000.tar").read_bytes()
    assert new != before["train-00000.tar"]
    monkeypatch.setattr(Target, "confirm", confirm)
    (shards / "train-00001.json").write_bytes(before["train-00001.json"])
    push.push(Config(shards, REPO, delete_pushed=True))
    assert there(hub)["train-00000.tar"] == new and not list(shards.glob("*.tar"))
    never_names_a_missing_shard(hub)


def test_a_tar_that_is_nowhere_is_named(hub: LoopbackHub, shards: Path) -> None:
    (shards / "train-00001.tar").unlink()
    with pytest.raises(
        PushError, match=r"train-00001.tar: neither here nor on the Hub. Remove .*train-00001.json"
    ):
        push.push(Config(shards, REPO))


def follow(config: Config) -> tuple[threading.Thread, list[BaseException]]:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            push.push(config)
        except Exception as error:  # noqa: BLE001  the test looks at it
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, failures


def test_follow_pushes_units_as_they_finish_and_ends_with_the_last(hub: LoopbackHub, tmp_path: Path) -> None:
    shards = tmp_path / "latents"
    shards.mkdir()
    thread, failures = follow(Config(shards, REPO, follow=True, every=0.0))
    committed = threading.Event()
    hub.on_commit = committed.set
    for unit in range(4):
        committed.clear()
        write_unit(shards, unit, units=4)
        assert committed.wait(20), failures
    thread.join(20)
    assert not thread.is_alive() and not failures
    assert there(hub) == contents(shards)
    assert len(hub.repos[REPO].log) == 1 + 4
    never_names_a_missing_shard(hub)


def test_follow_keeps_commits_few(hub: LoopbackHub, tmp_path: Path) -> None:
    shards = tmp_path / "latents"
    shards.mkdir()
    thread, failures = follow(Config(shards, REPO, follow=True, every=3600))
    for unit in range(6):
        write_unit(shards, unit, units=6, samples=1)
    thread.join(20)
    assert not thread.is_alive() and not failures
    assert len(hub.repos[REPO].log) <= 3 and there(hub) == contents(shards)


def test_follow_told_to_stop_pushes_what_is_finished(hub: LoopbackHub, tmp_path: Path) -> None:
    shards = tmp_path / "latents"
    shards.mkdir()
    write_unit(shards, 0, units=3)
    stop = threading.Event()
    stop.set()
    push.push(Config(shards, REPO, follow=True), stop)
    assert there(hub) == contents(shards)
    manifest = Manifest.from_json(there(hub)[MANIFEST])
    assert manifest.splits["train"].units_done == 1 and not manifest.splits["train"].complete


# --- card ---


def test_the_card_keeps_what_people_wrote(hub: LoopbackHub, shards: Path) -> None:
    push.push(Config(shards, REPO))
    card = hub.repos[REPO].files()["README.md"].data.decode()
    assert "15" in card and "`KEY.moments_32.npy`" in card and "too_small" in card and "[0-9]*.tar" in card
    edited = (
        card.replace("license: other", "license: mit").replace("\n# demo", "\n# demo")
        + "\n## Ours\n\nBy hand.\n"
    )
    api = huggingface_hub.HfApi()
    api.upload_file(
        path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=REPO, repo_type="dataset"
    )
    write_unit(shards, 0, samples=4)  # unit 0 made anew, with one sample less
    push.push(Config(shards, REPO))
    again = hub.repos[REPO].files()["README.md"].data.decode()
    assert "license: mit" in again and again.rstrip().endswith("By hand.") and "| train | 14 |" in again


def test_no_secret_leaves_the_machine(hub: LoopbackHub, shards: Path) -> None:
    push.push(Config(shards, REPO))
    for name, data in there(hub).items():
        assert b"hf_owner" not in data and str(shards).encode() not in data, name


def test_the_hub_checks_what_it_is_sent(hub: LoopbackHub) -> None:
    """The loopback Hub is strict, or the tests above would prove nothing."""
    api = huggingface_hub.HfApi()
    api.create_repo(REPO, repo_type="dataset")
    lines = [{"key": "lfsFile", "value": {"path": "x.tar", "oid": hashlib.sha256(b"x").hexdigest()}}]
    headers = {"Authorization": "Bearer hf_owner"}
    body = "\n".join(json.dumps(line) for line in lines)
    answer = huggingface_hub.get_session().post(
        f"{hub.url}/api/datasets/{REPO}/commit/main", content=body, headers=headers
    )
    assert answer.status_code == 400


def test_errors_of_the_push_are_ours() -> None:
    assert issubclass(PushError, PrecomputeError)


@pytest.mark.parametrize("status", [0, -1, 503])
def test_a_lost_commit_to_what_is_there_already_is_made_again(
    hub: LoopbackHub, tmp_path: Path, status: int
) -> None:
    """A second push, of a unit that was made again: its names are there, and the bytes are the old ones."""
    shards = write_shards(tmp_path / "latents")
    push.push(Config(shards, REPO))
    write_unit(shards, 0, samples=4)
    write_manifest(shards)
    hub.fail("POST", "/commit/", status)
    push.push(Config(shards, REPO))
    there = hub.repos[REPO].files()
    for path in shards.iterdir():
        if path.is_file():
            assert there[path.name].data == path.read_bytes(), path.name


def test_a_null_caption_that_is_none_is_not_published(hub: LoopbackHub, shards: Path) -> None:
    (shards / "null_caption.npz").write_bytes(b"garbage")
    with pytest.raises(PushError, match=r"null_caption.npz: unreadable.*made anew"):
        push.push(Config(shards, REPO))
    write_manifest(shards)
    push.push(Config(shards, REPO))
    manifest = Manifest.from_json(there(hub)[MANIFEST])
    assert manifest.null_caption == hashlib.sha256(there(hub)["null_caption.npz"]).hexdigest()
