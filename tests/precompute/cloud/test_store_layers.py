"""`--beside BASE` with the layer, the base or both in a store: the bytes that a folder gets, whatever fails, and read as one."""

import contextlib
import datetime
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.archives import backoff
from loader import make_loader
from loader.format import MANIFEST, Manifest
from precompute import pack, push, run, verify
from precompute.cloud import opening
from precompute.cloud.place import options_for
from precompute.errors import RecipeMismatch, SourceError, UsageError
from tests.precompute.cloud.test_store_runs import check, config
from tests.precompute.hub.test_push import REPO
from tests.support.batches import all_same
from tests.support.faulty_store import KEYS, FaultyStore
from tests.support.launching import tars
from tests.support.loopback_hub import LoopbackHub
from tests.support.processes import finish
from tests.support.waiting import wait_until

NEW: dict[str, Any] = {"text_encoder": ("second=toy",), "resolutions": (32,)}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGSTOP and flock are POSIX's")


def layer(output: Path | str, raw: Path, base: Path | str, **more: Any) -> None:
    run.run(config(output, raw, beside=str(base), **{**NEW, **more}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, raw: Path, plain: Path) -> Path:
    """The layer, in a folder too."""
    output = tmp_path_factory.mktemp("layer")
    layer(output, raw, plain)
    return output


def findings(store: FaultyStore, output: Path | str, base: Path | str) -> list[str]:
    given = verify.Config(str(output), beside=str(base), store_option=store.options)
    return [str(finding) for finding in verify.verify(given).findings]


def batches(store: FaultyStore, *paths: Path | str) -> list[Any]:
    loader = make_loader(
        paths, 2, extras=["key", "caption"], resolution=32, storage_options=store.storage_options
    )
    with contextlib.closing(loader):
        found = list(loader)
        assert loader.stats()["substitutes"] == 0
    return found


@pytest.mark.parametrize("place", ["folder", "store", "hub"])
def test_the_files_are_those_of_a_layer_in_a_folder(
    hub: LoopbackHub,
    store: FaultyStore,
    raw: Path,
    plain: Path,
    made: Path,
    place: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    push.push(push.Config(plain, REPO))
    base = {"folder": str(plain), "hub": f"hf://datasets/{REPO}", "store": store.upload(plain, "base")}[place]
    url = f"s3://bucket/layers/{place}"
    layer(url, raw, base, store_option=store.options)
    check(store, f"layers/{place}", made)
    before = len(store.front.log)
    layer(url, raw, base, store_option=store.options)
    again = store.front.log[before:]
    assert not [key for method, key in again if method == "PUT" and key.endswith((".tar", ".parquet"))]
    told = capsys.readouterr()
    assert not any(secret in told.out + told.err for secret in KEYS.values())
    assert not findings(store, url, base)
    assert all_same(batches(store, base, url), batches(store, plain, made))


def test_a_layer_in_a_folder_beside_a_base_in_a_store(
    store: FaultyStore, raw: Path, plain: Path, made: Path, tmp_path: Path
) -> None:
    base = store.upload(plain, "base")
    layer(tmp_path, raw, base, store_option=store.options)
    assert tars(tmp_path) == tars(made)
    assert (tmp_path / MANIFEST).read_bytes() == (made / MANIFEST).read_bytes()
    assert not findings(store, tmp_path, base)
    with pytest.raises(UsageError, match="--store-option: only with a store"):
        layer(tmp_path, raw, plain, store_option=store.options)


# --- whatever happens ---


def beside(store: FaultyStore, plain: Path) -> dict[str, Any]:
    """The flags of a process of its own."""
    base = store.upload(plain, "base")
    return {"beside": base, "store_option": store.options, "timeout": 1.0, **NEW}


def test_killed_at_random_instants_beside_another_process(
    store: FaultyStore, raw: Path, plain: Path, made: Path, start: Any
) -> None:
    given, chance, url = beside(store, plain), random.Random(0), "s3://bucket/killed"
    processes = [start(url, raw, slow=0.005, **given) for _ in range(2)]
    for _ in range(4):
        time.sleep(chance.uniform(0.2, 1.2))
        victim = chance.randrange(2)
        processes[victim].kill()
        processes[victim] = start(url, raw, slow=0.005, **given)
    for process in processes:
        process.join(timeout=200)
    assert {process.exitcode for process in processes} == {0}
    check(store, "killed", made)
    assert not findings(store, url, given["beside"])


def test_a_frozen_process_wakes_and_changes_nothing(
    store: FaultyStore, raw: Path, plain: Path, made: Path, start: Any
) -> None:
    given: dict[str, Any] = beside(store, plain)
    asleep = start("s3://bucket/frozen", raw, signal_at=(9, signal.SIGSTOP), **given)
    wait_until(lambda: psutil.Process(asleep.pid).status() == psutil.STATUS_STOPPED)
    finish(start, "s3://bucket/frozen", raw, **given)  # type: ignore[arg-type]
    os.kill(asleep.pid, signal.SIGCONT)
    asleep.join(timeout=200)
    assert asleep.exitcode == 0
    check(store, "frozen", made)


def test_an_outage_of_the_base_is_waited_out_as_one_of_the_output_is(
    store: FaultyStore,
    raw: Path,
    plain: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten minutes of it: whoever only reads gives up after one."""
    spent = list[float]()

    def wait(self: backoff.Patience, what: str, asked: str | None = None) -> bool:
        self._spent += 60.0
        spent.append(self._spent)
        return self._spent <= self._seconds

    monkeypatch.setattr(backoff.Patience, "wait", wait)
    monkeypatch.setattr(opening, "WITHIN", datetime.timedelta(0))
    base = store.upload(plain, "base")
    store.front.answer = lambda environ: (
        "503 SlowDown"
        if environ["PATH_INFO"].endswith("base/train-00003-01.parquet") and max(spent, default=0) < 600
        else None
    )
    layer(tmp_path, raw, base, store_option=store.options)
    assert max(spent) == 600
    assert tars(tmp_path) == tars(made)


# --- names ---


def leave(store: FaultyStore, prefix: str, *names: str) -> None:
    """What an owner that died has left of a unit, made by other hardware."""
    for name in names:
        store.client.put_object(Bucket="bucket", Key=f"{prefix}/{name}", Body=b"other bytes")


def names_in(manifest: bytes) -> list[str]:
    return [shard.name for shard in Manifest.from_json(manifest).splits["train"].shards]


def test_names_that_are_taken_in_base_and_layer(
    hub: LoopbackHub, store: FaultyStore, raw: Path, plain: Path, made: Path, tmp_path: Path
) -> None:
    """Both have other names than they would have in a folder, and not the same; they are read as if they had."""
    base, url, folder = "s3://bucket/renamed/base", "s3://bucket/renamed/layer", tmp_path / "folder"
    leave(store, "renamed/base", "train-00000-01.tar", "train-00002-02.parquet")
    run.run(config(base, raw, store_option=store.options))
    renamed = names_in(store.objects("renamed/base")[MANIFEST])
    assert renamed[:2] == ["train-00000-02", "train-00000-50"] and "train-00002-50" in renamed
    leave(store, "renamed/layer", "train-00000-02.tar", "train-00003-01.parquet")
    layer(url, raw, base, store_option=store.options)
    there = names_in(store.objects("renamed/layer")[MANIFEST])
    assert there != renamed and [name[:11] for name in there] == [name[:11] for name in renamed]
    left = {name for name in store.objects("renamed/layer") if name.endswith((".tar", ".parquet"))}
    assert left == {f"{name}.{end}" for name in there for end in ("tar", "parquet")}
    assert not findings(store, url, base)
    layer(folder, raw, base, store_option=store.options)
    assert names_in((folder / MANIFEST).read_bytes()) == renamed
    assert not findings(store, folder, base)

    found = batches(store, base, url)
    assert all_same(batches(store, base, folder), found)
    keys = sorted(key for batch in found for key in batch["key"])
    assert keys == sorted(key for batch in batches(store, plain, made) for key in batch["key"])
    for where, name in ((base, "base"), (url, "layer")):
        push.push(push.Config(where, f"{REPO}-{name}", store_option=store.options))
    assert all_same(batches(store, f"hf://datasets/{REPO}-base", f"hf://datasets/{REPO}-layer"), found)
    pack.run(pack.Config((base, url), tmp_path / "packed", store_option=store.options))
    packed = batches(store, tmp_path / "packed")
    assert sorted(key for batch in packed for key in batch["key"]) == keys


def test_what_is_damaged_is_removed_as_verify_says_and_made_again(
    store: FaultyStore, raw: Path, plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets its old names: a layer beside it stays good."""
    base, url = store.upload(plain, "mended/base"), "s3://bucket/mended/layer"
    layer(url, raw, base, store_option=store.options)
    leave(store, "mended/base", "train-00001-02.tar", "train-00004-01.parquet")
    assert verify.run(verify.Config(base, store_option=store.options)) == 1
    told = capsys.readouterr().out
    assert (
        f"`aws s3 rm {base}/NAME --endpoint-url {store.endpoint}`" in told
        and "with a marker its unit's tars and parquets too" in told
    )
    for stem in ("train-00001", "train-00004"):
        assert f"Remove {stem}.json and run" in told
        for name in [name for name in store.objects("mended/base") if name.startswith(stem)]:
            store.client.delete_object(Bucket="bucket", Key=f"mended/base/{name}")
    run.run(config(base, raw, store_option=store.options))
    check(store, "mended/base", plain)
    assert not findings(store, url, base)


def test_options_are_for_stores_of_the_outputs_kind() -> None:
    given = ("endpoint=x",)
    for output in ("s3://a/b", "latents"):
        assert options_for("s3://c/d", output, given) == given
    assert options_for("gs://c/d", "s3://a/b", given) == () == options_for("latents", "s3://a/b", given)


def test_rows_that_are_tried_again(store: FaultyStore, raw: Path, plain: Path, made: Path) -> None:
    """Units done anew meet their own files, and keep them."""
    base, url = store.upload(plain, "base"), "s3://bucket/again"
    layer(url, raw, base, store_option=store.options)
    layer(url, raw, base, store_option=store.options, retry_rejected=("undecodable",))
    check(store, "again", made)


# --- what cannot be ---


def test_a_base_that_changed_is_refused(store: FaultyStore, raw: Path, plain: Path, tmp_path: Path) -> None:
    base, url = store.upload(plain, "changed/base"), "s3://bucket/changed/layer"
    layer(url, raw, base, store_option=store.options)
    table = pq.read_table(plain / "train-00001-01.parquet")
    captions = pa.array([f"other {n}" for n in range(len(table))])
    other = table.set_column(table.column_names.index("caption"), "caption", captions)
    pq.write_table(other, tmp_path / "other.parquet")
    changed = (tmp_path / "other.parquet").read_bytes()
    store.client.put_object(Bucket="bucket", Key="changed/base/train-00001-01.parquet", Body=changed)
    with pytest.raises(
        SourceError,
        match=r"has changed meanwhile\. Make the layer again, with another output: .*--output OUTPUT-2$",
    ):
        layer("s3://bucket/changed/second", raw, base, store_option=store.options)
    manifest = json.loads(store.objects("changed/base")[MANIFEST])
    manifest["splits"]["train"]["shards"][2]["parquet_sha256"] = "0" * 64
    store.client.put_object(Bucket="bucket", Key=f"changed/base/{MANIFEST}", Body=json.dumps(manifest))
    with pytest.raises(RecipeMismatch, match=r"plan\.base\.rows"):
        layer(url, raw, base, store_option=store.options)
    with pytest.raises(ValueError, match="has changed since the layer"):
        batches(store, base, url)


@pytest.mark.parametrize(
    "base, match",
    [
        ("s3://bucket/none", "--beside s3://bucket/none: no shards there"),
        ("s3://bucket", "--beside s3://bucket: give bucket and prefix"),
        ("s3://nothing/x", "--beside s3://nothing/x: .*no such bucket"),
        ("gs:bucket/x", "--beside gs:bucket/x"),
    ],
)
def test_a_base_that_is_none_is_one_line(store: FaultyStore, raw: Path, base: str, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        layer("s3://bucket/of-none", raw, base, store_option=store.options)
    assert "\n" not in str(error.value)
