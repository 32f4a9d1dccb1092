"""push.py and --push-to with shards in an object store: what is on the Hub is what a folder gives, and nothing stays on the way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.archives import backoff
from loader.format import MANIFEST
from precompute import push, run
from precompute.hub import hub_dataset
from precompute.hub.follow import Follower
from precompute.hub.retry import PushError
from precompute.shards.output_folder import OutputFolder
from tests.precompute.hub.test_push import REPO, contents, few_files, never_names_a_missing_shard, there
from tests.precompute.hub.test_run_and_push import config
from tests.support.faulty_store import KEYS, FaultyStore
from tests.support.finished_folder import write_shards
from tests.support.loopback_hub import LoopbackHub
from tests.support.waiting import wait_until


def test_the_command_and_again_and_deleting(
    hub: LoopbackHub,
    store: FaultyStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, scratch = write_shards(tmp_path / "latents"), tmp_path / "scratch"
    scratch.mkdir()
    url = store.upload(folder, "latents/a")
    few_files(monkeypatch, 3)
    words = [word for option in store.options for word in ("--store-option", option)]

    def pushed(*more: str) -> list[tuple[str, str]]:
        monkeypatch.setattr("sys.argv", ["push", url, REPO, "--scratch", str(scratch), *words, *more])
        store.front.log.clear()
        store.front.queries.clear()
        push.main()
        assert not list(scratch.iterdir())
        return [(method, key) for method, key in store.front.log if key.endswith(".tar")]

    read = pushed()
    assert there(hub) == contents(folder)
    never_names_a_missing_shard(hub)
    assert len(hub.repos[REPO].commits) > 3 and len(read) == 3, "each tar is read once"
    assert pushed() == [], "what the Hub has is not read again"
    assert pushed("--delete-pushed") == []
    assert store.front.queries.count("delete") == 3, "each tar"
    left = {name for name in contents(folder) if not name.endswith(".tar")}
    assert store.objects("latents/a").keys() == left
    assert pushed() == [] and there(hub) == contents(folder)
    looked = len(store.front.log)
    pushed("--delete-pushed")
    assert store.front.queries.count("delete") == 0, "what is gone is not deleted again"
    assert len(store.front.log) == looked + 1, "nor looked at, but by one listing"
    told = capsys.readouterr()
    assert not any(value in told.out + told.err for value in KEYS.values())


def test_what_is_damaged_or_gone_there_is_not_sent(
    hub: LoopbackHub, store: FaultyStore, tmp_path: Path
) -> None:
    folder = write_shards(tmp_path / "latents")
    url = store.upload(folder, "damaged/a")
    config = push.Config(url, REPO, store_option=store.options)
    tar = (folder / "train-00001.tar").read_bytes()
    store.client.put_object(Bucket="bucket", Key="damaged/a/train-00001.tar", Body=tar[:-1] + b"x")
    with pytest.raises(PushError, match=rf"{url}/train-00001.tar: not what was written .*verify {url}"):
        push.push(config)
    store.client.delete_object(Bucket="bucket", Key="damaged/a/train-00001.tar")
    with pytest.raises(PushError, match=rf"{url}/train-00001.tar: neither here nor on the Hub"):
        push.push(config)
    assert "train-00001.tar" not in there(hub)


def test_a_run_pushes_and_deletes_out_of_the_store(
    hub: LoopbackHub, store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own units, while it goes on; the next run knows that there is nothing to do."""
    every = push.Config
    monkeypatch.setattr(push, "Config", lambda *a, **k: every(*a, **{**k, "every": 0.0}))
    monkeypatch.setattr(hub_dataset, "FIRST", 1)
    run.run(replace(config(tmp_path / "local"), push_to=None))
    given: dict[str, Any] = {"store_option": store.options, "scratch": tmp_path, "delete_pushed": True}
    there_config = config("s3://bucket/follows/x", **given)
    run.run(there_config)
    tars = {path.name: path.read_bytes() for path in (tmp_path / "local").glob("*.tar")}
    assert {name: data for name, data in there(hub).items() if name.endswith(".tar")} == tars
    left = store.objects("follows/x")
    assert left[MANIFEST] == (tmp_path / "local" / MANIFEST).read_bytes() == there(hub)[MANIFEST]
    assert not [name for name in left if name.endswith(".tar") or name.startswith(".work")]
    commits = len(hub.repos[REPO].commits)
    run.run(there_config)
    assert len(hub.repos[REPO].commits) == commits
    assert not list(tmp_path.glob("latentmill-*"))


def test_a_run_that_has_failed_ends_the_waits_of_its_push(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for a store included: the run is not held up by its patience."""
    cut = list[bool]()
    monkeypatch.setattr(Follower, "follow", lambda self: cut.append(backoff.cut_short(300)))
    shards = write_shards(tmp_path / "latents")
    follower = Follower(push.Config(shards, REPO), OutputFolder(shards, "train"), 60)
    follower.abandon()
    wait_until(lambda: cut == [True])
