"""`precompute/run.py --output s3://...` on a server of moto: the files are those of a plain run to a folder, whatever fails."""

import io
import json
import os
import queue
import random
import signal
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from builders.archives import backoff
from loader import make_loader
from precompute import run
from precompute.cloud.output_store import OutputStore
from precompute.cloud.trouble import StoreError
from tests.support.faulty_store import KEYS, FaultyStore, at_random
from tests.support.launching import run_precompute, tars
from tests.support.processes import finish
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.waiting import wait_until
from tests.support.worker import TOY

UNITS, ROWS = 6, 5
KILLS = int(os.environ.get("LATENTMILL_STORE_KILLS", "4"))

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGSTOP and flock are POSIX's")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw"))


def write_raw(folder: Path) -> Path:
    """Tars of five rows; the third of each is no image."""
    for unit in range(UNITS):
        members = []
        for row in range(ROWS):
            key = f"{unit:03d}{row:03d}"
            picture = b"<html>" if row == 2 else jpeg(unit + row, (256, 256))
            members += [(f"{key}.jpg", picture), (f"{key}.txt", f"caption {row} of {unit}".encode())]
        write_tar(folder / f"{unit:05d}.tar", members)
    return folder


def config(output: Path | str, data: Path, **more: Any) -> run.Config:
    given = {"data_dir": data, "batch_size": 3, "num_threads": 2, "samples_per_shard": 3, **TOY, **more}
    return run.Config("builders/webdataset", output, **given)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    output = tmp_path_factory.mktemp("plain")
    run.run(config(output, data))
    assert len(tars(output)) == 2 * UNITS
    return output


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a hundredth."""

    def wait(self: backoff.Patience, what: str, asked: str | None = None) -> bool:
        self._spent += 1.0
        return self._spent < 100 and not backoff.cut_short(0.01)

    monkeypatch.setattr(backoff.Patience, "wait", wait)


def check(store: Any, prefix: str, plain: Path) -> None:
    """Hold a store against a plain run's folder: the same files, markers but for their timings, and nothing more."""
    there = store.objects(prefix)
    expected = {path.name: path.read_bytes() for path in plain.iterdir() if path.is_file()}
    assert there.keys() == expected.keys()
    for name, contents in expected.items():
        if name.startswith("train-") and name.endswith(".json"):
            mine, theirs = json.loads(there[name]), json.loads(contents)
            assert {**mine, "timings": 0} == {**theirs, "timings": 0}
        else:
            assert there[name] == contents, name


def test_the_files_are_those_of_a_plain_run(
    store: FaultyStore, data: Path, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "s3://bucket/plain/run"
    run.run(config(url, data, store_option=store.options, scratch=tmp_path))
    check(store, "plain/run", plain)
    told = capsys.readouterr()
    assert f"-> {url}, on cpu: 0 of {UNITS} units finished before" in told.out
    for secret in KEYS.values():
        assert secret not in told.out + told.err
        assert not any(secret.encode() in contents for contents in store.objects("plain/run").values())
    assert not list(tmp_path.iterdir())
    assert not list(Path(tempfile.gettempdir()).glob("new-latentmill-*"))
    before = len(store.front.log)
    run.run(config(url, data, store_option=store.options, scratch=tmp_path))
    again = store.front.log[before:]
    assert not [key for method, key in again if method == "PUT" and key.endswith((".tar", ".parquet"))]
    check(store, "plain/run", plain)


def test_scratch_holds_three_units_at_most_however_slow_the_store(
    store: FaultyStore, data: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two on their way, and the one that grows or waits for them; uploads begin once there are as many."""
    begin, held, full = OutputStore.begin, list[int](), threading.Event()

    def counted(self: OutputStore, stem: str, owner: str) -> Path:
        begun = begin(self, stem, owner)
        held.append(len(list(begun.parent.glob("train-*"))))
        if held[-1] == 3:
            full.set()
        return begun

    def answer(environ: dict[str, Any]) -> str | None:
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith(".tar"):
            assert full.wait(60)
        return None

    monkeypatch.setattr(OutputStore, "begin", counted)
    store.front.answer, store.front.seconds = answer, 0.02
    run.run(config("s3://bucket/slow", data, store_option=store.options, scratch=tmp_path))
    assert max(held) == 3 and len(held) == UNITS
    store.calm()
    check(store, "slow", plain)


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_fails_changes_nothing(
    store: FaultyStore, data: Path, plain: Path, quick: None, seed: int
) -> None:
    """It refuses, conflicts for no reason, loses replies to what it has done, and does things twice."""
    store.front.answer = at_random(
        seed, 0.2, "503 SlowDown", "lost", "twice", "409 ConditionalRequestConflict"
    )
    if seed == 2:
        store.front.answer = at_random(seed, 0.2, "412 PreconditionFailed", "lost", methods="PUT")
    run.run(config(f"s3://bucket/fails-{seed}", data, store_option=store.options))
    store.calm()
    check(store, f"fails-{seed}", plain)


def test_an_outage_is_waited_out(store: FaultyStore, data: Path, plain: Path, quick: None) -> None:
    begun = threading.Event()

    def answer(environ: dict[str, Any]) -> str | None:
        if environ["PATH_INFO"].endswith("train-00001-01.tar") and not begun.is_set():
            begun.set()
            threading.Timer(1.0, store.calm).start()
        return "503 SlowDown" if begun.is_set() else None

    store.front.answer = answer
    run.run(config("s3://bucket/outage", data, store_option=store.options))
    assert begun.is_set()
    check(store, "outage", plain)


def test_expired_credentials_stop_at_once_and_the_next_run_finishes(
    store: FaultyStore, data: Path, plain: Path
) -> None:
    left = iter(range(40))
    store.front.answer = lambda environ: None if next(left, None) is not None else "400 ExpiredToken"
    began = time.monotonic()
    with pytest.raises(StoreError, match="the credentials have expired"):
        run.run(config("s3://bucket/expired", data, store_option=store.options, lease_timeout=2.0))
    assert time.monotonic() - began < 20
    store.calm()
    assert len(store.objects("expired")) > 0
    run.run(config("s3://bucket/expired", data, store_option=store.options, lease_timeout=2.0))
    check(store, "expired", plain)


def launched(start: Any, store: FaultyStore, data: Path, prefix: str, **more: Any) -> Any:
    return start(f"s3://bucket/{prefix}", data, store_option=store.options, **more)


def test_killed_at_random_instants(store: FaultyStore, data: Path, plain: Path, start: Any) -> None:
    """Two processes; whoever dies is replaced, while the store refuses, conflicts for no reason and loses replies.
    LATENTMILL_STORE_KILLS: how many at least, in as many runs as it takes."""
    kills, chance, number = 0, random.Random(0), 0
    refusals = ("503 SlowDown", "409 ConditionalRequestConflict", "412 PreconditionFailed", "lost")
    while kills < KILLS:
        number += 1
        store.front.answer = at_random(number, 0.05, *refusals, methods="PUT")
        prefix = f"kills-{number}"
        processes = [launched(start, store, data, prefix, slow=0.005, timeout=3.0) for _ in range(2)]
        while kills < KILLS and all(process.exitcode is None for process in processes):
            time.sleep(chance.uniform(0.2, 1.2))
            victim = chance.randrange(2)
            if processes[victim].is_alive():
                processes[victim].kill()
                kills += 1
                processes[victim] = launched(start, store, data, prefix, slow=0.005, timeout=3.0)
        for process in processes:
            process.join(timeout=200)
        assert {process.exitcode for process in processes} == {0}
        store.calm()
        check(store, prefix, plain)


@pytest.mark.parametrize("write", [1, 15])
def test_a_frozen_process_wakes_and_changes_nothing(
    store: FaultyStore,
    data: Path,
    plain: Path,
    start: Any,
    write: int,
) -> None:
    prefix = f"frozen-{write}"
    asleep = launched(start, store, data, prefix, timeout=1.0, signal_at=(write, signal.SIGSTOP))
    wait_until(lambda: psutil.Process(asleep.pid).status() == psutil.STATUS_STOPPED)
    assert [name for name in store.objects(prefix) if ".lease-1" in name], "a unit is in its hands"
    finish(start, f"s3://bucket/{prefix}", data, store_option=store.options, timeout=1.0)  # type: ignore[arg-type]
    os.kill(asleep.pid, signal.SIGCONT)
    asleep.join(timeout=200)
    assert asleep.exitcode == 0
    check(store, prefix, plain)


def test_a_write_that_arrives_after_its_process_was_given_up(
    store: FaultyStore, data: Path, plain: Path, start: Any
) -> None:
    """A tar is on its way when its process freezes; another one finishes all; then it arrives, and the process wakes. Its
    earlier writes arrive once more. All have other bytes than those that are there."""
    names: queue.Queue[int] = queue.Queue()
    finished, arrived, late = threading.Event(), threading.Event(), list[dict[str, Any]]()

    def answer(environ: dict[str, Any]) -> str | None:
        if environ["REQUEST_METHOD"] == "PUT" and not finished.is_set() and not arrived.is_set():
            body = environ["wsgi.input"].read()
            environ["wsgi.input"] = io.BytesIO(body)
            if environ.get("HTTP_IF_NONE_MATCH") or environ["PATH_INFO"].endswith("manifest.json"):
                late.append({**environ, "wsgi.input": body[::-1]})
            if environ["PATH_INFO"].endswith("-01.tar"):
                arrived.set()
                os.kill(names.get(), signal.SIGSTOP)
                assert finished.wait(200)
                environ["wsgi.input"] = io.BytesIO(body[::-1])
        return None

    store.front.answer = answer
    asleep = launched(start, store, data, "late", timeout=1.0)
    names.put(asleep.pid)
    assert arrived.wait(200)
    assert not [name for name in store.objects("late") if name.endswith("-01.tar")], "it has not arrived"
    finish(start, "s3://bucket/late", data, store_option=store.options, timeout=1.0)  # type: ignore[arg-type]
    finished.set()
    for environ in late:
        list(
            store.front.app(
                {**environ, "wsgi.input": io.BytesIO(environ["wsgi.input"])}, lambda *_, **__: None
            )
        )
    assert store.objects("late")["manifest.json"] == (plain / "manifest.json").read_bytes()
    os.kill(asleep.pid, signal.SIGCONT)
    asleep.join(timeout=200)
    assert asleep.exitcode == 0
    run.run(config("s3://bucket/late", data, store_option=store.options))
    check(store, "late", plain)


def test_a_loader_reads_while_it_grows(store: FaultyStore, data: Path, plain: Path, start: Any) -> None:
    """Whatever the manifest names is there."""
    writer = launched(start, store, data, "grows", slow=0.03)

    def finished() -> int:
        try:
            found = store.client.get_object(Bucket="bucket", Key="grows/manifest.json")
        except store.client.exceptions.NoSuchKey:
            return 0
        splits = json.loads(found["Body"].read())["splits"]
        return int(sum(len(split["shards"]) for split in splits.values()))

    wait_until(finished)
    seen = set()
    while writer.is_alive():
        seen.add(len(keys(store, "grows")))
    writer.join()
    assert writer.exitcode == 0 and 0 not in seen
    everything = keys(store, "grows")
    local = make_loader(str(plain), 2, extras="key", shuffle=False, drop_last=False)
    assert everything == [key for batch in local for key in batch["key"]]
    local.close()


def test_accelerate_launches_two_processes_to_a_store(
    store: FaultyStore, data: Path, plain: Path, tmp_path: Path
) -> None:
    words = [word for option in store.options for word in ("--store-option", option)]
    toy = ["--vae", "toy", "--text-encoder", "toy", "--dtype", "float32", "--resolutions", "64"]
    sizes = ["--batch-size", "3", "--samples-per-shard", "3", "--num-threads", "2", "--scratch", tmp_path]
    place = ["--data-dir", data, "--output", "s3://bucket/launched/run"]
    done = run_precompute("builders/webdataset", *place, *toy, *sizes, *words, processes=2, launcher=True)
    assert not any(value in done.stdout + done.stderr for value in KEYS.values())
    check(store, "launched/run", plain)
    # What boto3 lists and Python's tarfile reads of it: each good row once, with its caption and its arrays.
    captions, shapes = [], set()
    for name, contents in sorted(store.objects("launched/run").items()):
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(contents)) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
            captions += [text.decode() for member, text in members.items() if member.endswith(".txt")]
            arrays = [data for member, data in members.items() if member.endswith(".moments_64.npy")]
            shapes |= {np.load(io.BytesIO(data)).shape for data in arrays}
    assert captions == [
        f"caption {row} of {unit}" for unit in range(UNITS) for row in range(ROWS) if row != 2
    ]
    assert shapes == {(8, 8, 8)}


def keys(store: FaultyStore, prefix: str) -> list[str]:
    batches = make_loader(
        f"s3://bucket/{prefix}",
        2,
        extras="key",
        shuffle=False,
        drop_last=False,
        storage_options=store.storage_options,
    )
    try:
        found = [key for batch in batches for key in batch["key"]]
        assert batches.stats()["substitutes"] == 0
        return found
    finally:
        batches.close()
