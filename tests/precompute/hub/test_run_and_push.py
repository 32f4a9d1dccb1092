"""`precompute/run.py --push-to`: the Hub follows the run, and with --max-disk the tars here stay few."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from loader.format import MANIFEST, Manifest
from precompute import push, run
from precompute.errors import UsageError
from precompute.hub.retry import PushError
from tests.precompute.hub.test_push import REPO
from tests.support.disk import Watch, bytes_of_tars
from tests.support.loopback_hub import LoopbackHub
from tests.support.waiting import wait_until


def config(output: Path, **options: Any) -> run.Config:
    return run.Config(
        "builders/demo", output, vae="toy", text_encoder=("toy",), resolutions=(64,), push_to=REPO, **options
    )


def tars_there(hub: LoopbackHub) -> set[str]:
    return {name for name in hub.repos[REPO].files() if name.endswith(".tar")}


ROOM_FOR_TWO = 200e3 / 1e9  # GB
ALL = {f"train-0000{unit}.tar" for unit in range(4)}


def test_hub_has_all_when_the_run_ends(hub: LoopbackHub, tmp_path: Path) -> None:
    run.run(config(tmp_path))
    assert tars_there(hub) == ALL
    assert hub.repos[REPO].files()[MANIFEST].data == (tmp_path / MANIFEST).read_bytes()
    assert {path.name for path in tmp_path.glob("*.tar")} == ALL
    assert not (tmp_path / ".work").exists()


def test_pushed_tars_are_deleted_and_never_more_are_here_than_fit(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.run(config(tmp_path / "first"))
    sizes = [path.stat().st_size for path in (tmp_path / "first").glob("*.tar")]
    limit = 2.5 * max(sizes)
    hub.repos.clear()
    every, there = push.Config, [0]
    monkeypatch.setattr(push, "Config", lambda *a, **k: every(*a, **{**k, "every": 0.0}))
    # What a commit holds is still here while the Hub is at it.
    hub.on_commit = lambda: there.append(bytes_of_tars(tmp_path / "out"))
    watch = Watch(tmp_path / "out")
    run.run(config(tmp_path / "out", delete_pushed=True, max_disk=limit / 1e9))
    most = max(watch.stop(), *there)
    assert tars_there(hub) == ALL
    assert not list((tmp_path / "out").glob("*.tar"))
    assert max(sizes) <= most <= limit
    # The markers stay, so that the next run knows; there is nothing to do.
    run.run(config(tmp_path / "out", delete_pushed=True, max_disk=limit / 1e9))
    assert Manifest.from_json((tmp_path / "out" / MANIFEST).read_bytes()).splits["train"].complete


def test_hub_that_refuses_stops_the_run_before_it_begins(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    with pytest.raises(PushError, match=REPO):
        run.run(config(tmp_path))
    assert not list(tmp_path.glob("*.tar"))
    assert not (tmp_path / ".work").exists()


def test_hub_that_fails_on_the_way_is_tried_again(hub: LoopbackHub, tmp_path: Path) -> None:
    """Longer than one push has patience."""
    hub.fail("POST", r"/commit/", 503, times=8)
    run.run(config(tmp_path))
    assert tars_there(hub) == ALL


def test_hub_that_stays_away_fails_the_run_and_loses_nothing(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail("POST", r"/commit/", 503, times=1000)
    with pytest.raises(PushError):
        run.run(config(tmp_path))
    assert {path.name for path in tmp_path.glob("*.tar")} == ALL
    assert Manifest.from_json((tmp_path / MANIFEST).read_bytes()).splits["train"].complete


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413])
def test_hub_that_refuses_on_the_way_stops_the_run_even_while_it_waits_for_room(
    hub: LoopbackHub, tmp_path: Path, status: int
) -> None:
    """Nothing is deleted, so that there never is room again."""
    hub.fail("POST", r"/commit/", status, times=1000)
    with pytest.raises(PushError, match=REPO):
        run.run(config(tmp_path, delete_pushed=True, max_disk=ROOM_FOR_TWO))
    assert hub.asked("POST", r"/commit/") == 1
    assert 0 < len(list(tmp_path.glob("train-*.json"))) < len(ALL)
    assert not (tmp_path / ".work").exists()
    hub.faults.clear()
    run.run(config(tmp_path))
    assert tars_there(hub) == ALL


def test_hub_that_holds_another_recipe_stops_the_run(hub: LoopbackHub, tmp_path: Path) -> None:
    run.run(config(tmp_path / "one"))
    with pytest.raises(PushError, match="another recipe"):
        run.run(config(tmp_path / "other", posterior="mode", delete_pushed=True, max_disk=ROOM_FOR_TWO))


def hold_the_push_lease(output: Path) -> Path:
    """Hold the lease as another machine does."""
    lease = output / ".work" / "pushing.lock.lease-1"
    lease.parent.mkdir(exist_ok=True)
    lease.write_text(json.dumps({"token": "x", "host": "another", "boot": "", "namespace": "", "pid": 1}))
    return lease


def test_run_ends_only_when_the_hub_has_all_though_the_pusher_died(hub: LoopbackHub, tmp_path: Path) -> None:
    """It was on another machine, so that only its silence tells."""
    hold_the_push_lease(tmp_path)
    run.run(config(tmp_path, lease_timeout=1.0))
    assert tars_there(hub) == ALL
    assert not (tmp_path / ".work").exists()


def test_run_ends_when_another_process_has_pushed_all_though_it_goes_on(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    """It goes on with a split of its own, say."""
    lease = hold_the_push_lease(tmp_path)
    thread = threading.Thread(target=run.run, args=(config(tmp_path, lease_timeout=600.0),))
    thread.start()
    wait_until(lambda: len(list(tmp_path.glob("train-*.json"))) == len(ALL))
    thread.join(0.5)
    assert thread.is_alive(), "nothing is on the Hub yet"
    push.push(push.Config(tmp_path, REPO))
    thread.join(200)
    assert not thread.is_alive() and tars_there(hub) == ALL and lease.exists()


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"push_to": None, "delete_pushed": True}, "--delete-pushed: only with --push-to"),
        ({"push_to": None, "private": True}, "--private: only with --push-to"),
        ({"max_disk": 1.0}, "--max-disk 1: only with --delete-pushed"),
    ],
)
def test_flags_that_need_others(tmp_path: Path, options: dict[str, Any], flag: str) -> None:
    given = {"push_to": REPO, **options}
    with pytest.raises(UsageError, match=flag):
        run.check(run.Config("builders/demo", tmp_path, **given))
