"""Remote shards through a bounded cache, with a server that does everything servers do."""

import contextlib
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import loader.remote
import loader.stopping
import loader.transport
from loader import DataError, make_loader
from loader.cache import Cache
from tests.support.faulty_server import (
    Server,
    close_after,
    ignore_range,
    reset_after,
    serve,
    stall_after,
    status,
    wrong_bytes,
)
from tests.support.keyed_shards import FIELDS, write_shards
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {"extras": ["key"], "seed": 1, "shuffle_window": 20}
ONE_FIELD = [field for field in FIELDS if field.name == "moments_256"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Connections count as dead soon only where one is: a busy machine is no stall."""
    if "stall" in request.node.name:
        monkeypatch.setattr(loader.transport, "TIMEOUT", 0.5)
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("remote") / "a", [10, 10, 10, 10], fields=ONE_FIELD)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as running:
        yield running


def keys(path: Any, batch_size: int = 5, **options: Any) -> list[str]:
    batches = make_loader(path, batch_size, **{**OPTIONS, **options})
    found = [key for batch in batches for key in batch["key"]]
    batches.close()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_epoch_is_the_local_one(server: Server, folder: Path, workers: int) -> None:
    assert keys(server.url, num_workers=workers) == keys(folder)
    names = [path for path, _, _ in server.requests if path.endswith(".tar")]
    assert len(names) == len(set(names)) == 4  # each shard once, whoever needs it


def test_a_second_run_fetches_nothing_but_the_manifest(server: Server) -> None:
    first = keys(server.url)
    before = len(server.requests)
    assert keys(server.url) == first
    assert [path for path, _, _ in server.requests[before:]] == ["/manifest.json"]


@pytest.mark.parametrize(
    "faults",
    [
        [status(429, Retry_After="0.3"), None],
        [status(503), status(502), status(408), None],
        [reset_after(1000), reset_after(1000), None],
        [close_after(1000), None],
        [stall_after(1000), None],
        [reset_after(1000), ignore_range, None],
        [wrong_bytes, None],
        [reset_after(3000), wrong_bytes, None],
    ],
    ids=["429", "5xx", "reset", "short", "stall", "no ranges", "wrong bytes", "wrong after resume"],
)
@pytest.mark.parametrize("file", ["manifest.json", "train-00001.parquet", "train-00001.tar"])
def test_faults_that_pass_cost_nothing(server: Server, folder: Path, faults: list[Any], file: str) -> None:
    if file == "manifest.json" and wrong_bytes in faults:
        pytest.skip("nothing says what the manifest's bytes should be")
    server.faults[f"/{file}"] = list(faults)
    batches = make_loader(server.url, 5, **OPTIONS)
    found = [key for batch in batches for key in batch["key"]]
    assert found == keys(folder)
    assert batches.stats()["substitutes"] == 0
    assert not any(server.faults[f"/{file}"])
    batches.close()


def test_a_broken_download_goes_on_where_it_broke(server: Server) -> None:
    server.faults["/train-00002.tar"] = [reset_after(5000)]
    keys(server.url)
    ranges = [range_ for path, range_, _ in server.requests if path == "/train-00002.tar"]
    assert ranges[0] is None and len(ranges) == 2
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 5000


@pytest.mark.parametrize("left", ["whole", "longer", "wrong"])
def test_what_a_killed_process_left_is_no_obstacle(
    server: Server, folder: Path, cache: Path, left: str
) -> None:
    for name in ("train-00001.parquet", "train-00001.tar"):
        data = (folder / name).read_bytes()
        size = 0 if name.endswith("parquet") else len(data)
        sha256 = hashlib.sha256(data).hexdigest()
        data = {"whole": data, "longer": data + bytes(100), "wrong": bytes(len(data))}[left]
        (cache / "files").mkdir(parents=True, exist_ok=True)
        (cache / "files" / f"{sha256}.{size}.part").write_bytes(data)
    batches = make_loader(server.url, 5, **OPTIONS)
    assert [key for batch in batches for key in batch["key"]] == keys(folder)
    assert batches.stats()["substitutes"] == 0
    batches.close()
    assert not list((cache / "files").glob("*.part"))


def test_a_full_disk_stops_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left on device"):
        keys(server.url)


def test_retry_after_is_obeyed(server: Server) -> None:
    server.faults["/train-00000.tar"] = [status(429, Retry_After="1")]
    begin = time.monotonic()
    keys(server.url)
    assert time.monotonic() - begin >= 1


def test_a_shard_that_vanished_is_replaced_and_counted(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults["/train-00001.tar"] = [status(404)] * 10_000
    batches = make_loader(server.url, 5, **OPTIONS)
    found = [key for batch in batches for key in batch["key"]]
    assert len(found) == 40 and batches.stats()["substitutes"] == 10
    assert "train-00001.tar: HTTP 404" in caplog.text
    assert sum(path == "/train-00001.tar" for path, _, _ in server.requests) <= 6  # not once for each batch
    batches.close()
    with pytest.raises(DataError, match=r"train-00001.tar: HTTP 404"):
        keys(server.url, on_error="raise")


def test_a_shard_of_wrong_bytes_is_replaced_and_counted(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults["/train-00001.tar"] = [wrong_bytes] * 10_000
    batches = make_loader(server.url, 5, **OPTIONS)
    assert sum(len(batch["key"]) for batch in batches) == 40
    assert batches.stats()["substitutes"] == 10
    assert "the manifest says" in caplog.text
    batches.close()


def test_an_outage_ends_after_the_patience(server: Server) -> None:
    for unit in range(4):
        server.faults[f"/train-0000{unit}.tar"] = [status(503)] * 10_000
    with pytest.raises(DataError, match=r"HTTP 503; nothing arrived for"):
        keys(server.url, patience=0.3, on_error="raise")


def test_a_refusal_stops_at_once_and_names_the_cure(server: Server) -> None:
    server.faults["/train-00000.tar"] = [status(403)] * 100
    with pytest.raises(PermissionError, match=r"HTTP 403.*set HF_TOKEN"):
        keys(server.url)


def test_a_file_damaged_in_the_cache_is_fetched_again(server: Server, folder: Path, cache: Path) -> None:
    expected = keys(server.url)
    for path in (cache / "files").iterdir():
        if path.stat().st_size > 30_000:
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
    assert keys(server.url) == expected
    assert sum(path == "/train-00001.tar" for path, _, _ in server.requests) == 2


def test_the_cache_limit_holds(tmp_path: Path, cache: Path) -> None:
    folder = write_shards(tmp_path / "b", [10] * 40, fields=ONE_FIELD)
    tar = (folder / "train-00000.tar").stat().st_size
    limit, largest, most = int(3.5 * tar), 0, 0
    with serve(folder) as server:
        server.bytes_per_second = 5e6
        batches = make_loader(server.url, 5, **{**OPTIONS, "shuffle_window": 10, "cache_limit": limit})
        found: list[str] = []
        for batch in batches:
            found += batch["key"]
            sizes = []
            for path in (cache / "files").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
            largest = max(largest, sum(sizes))
            most = max(most, sum(size == tar for size in sizes))
        assert len(set(found)) == 400
        assert found == keys(folder, shuffle_window=10)
        # Four at a time are fetched, and a sidecar is taken for a thirty-second of the limit until it is there.
        sidecar = max(path.stat().st_size for path in folder.glob("*.parquet"))
        assert largest <= limit + 4 * max(0, sidecar - limit // 32) and most == 3
        assert batches.stats()["cache_evictions"] >= 37
        assert batches.stats()["substitutes"] == 0
        batches.close()


def test_a_limit_below_what_a_window_needs_is_refused(server: Server) -> None:
    with pytest.raises(ValueError, match=r"cache_limit=1000: with shuffle_window=20 it takes \d+ bytes"):
        make_loader(server.url, 5, **OPTIONS, cache_limit=1000)


def test_what_is_in_use_is_never_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=250)
    contents = {hashlib.sha256(data).hexdigest(): data for data in (bytes([i]) * 100 for i in range(4))}

    def put(sha256: str) -> int:
        return cache.open(sha256, 100, "x", lambda part: part.add(contents[sha256]))

    names = list(contents)
    held = put(names[0])
    for name in names[1:]:
        os.close(put(name))
    left = {path.name for path in (tmp_path / "files").iterdir()}
    assert names[0] in left and names[3] in left and names[1] not in left
    assert os.pread(held, 100, 0) == contents[names[0]]
    os.close(held)


def test_a_full_cache_in_use_elsewhere_is_waited_for_with_a_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loader.stopping, "STALL", 0.2)
    cache = Cache(tmp_path, limit=150)
    held = tmp_path / "files" / "held"
    held.parent.mkdir()
    held.write_bytes(bytes(100))
    data = bytes(100)
    sha256 = hashlib.sha256(data).hexdigest()
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)

        def let_go() -> None:
            wait_until(lambda: "waiting for room in the cache for the shard" in caplog.text)
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)

        thread = threading.Thread(target=let_go)
        thread.start()
        os.close(cache.open(sha256, 100, "the shard", lambda part: part.add(data)))
        thread.join()
    assert not held.exists()


PROGRAM = """
import sys
from loader import make_loader
batches = make_loader(sys.argv[1], 5, extras=["key"], seed=1, shuffle_window=20)
print(" ".join(key for batch in batches for key in batch["key"]))
"""


def start(url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def unfinished(cache: Path) -> dict[str, int]:
    """The files that are being fetched, and how much of each is here; they may be finished meanwhile."""
    sizes = {}
    for part in (cache / "files").glob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            sizes[part.name] = part.stat().st_size
    return sizes


def test_two_processes_killed_while_fetching_leave_nothing_to_clean(
    server: Server, folder: Path, cache: Path
) -> None:
    server.bytes_per_second = 20_000
    two = [start(server.url), start(server.url)]
    wait_until(lambda: any(size > 8000 for size in unfinished(cache).values()))
    for process in two:
        process.kill()
    for process in two:
        process.communicate()
    left = unfinished(cache)
    assert any(left.values())
    server.bytes_per_second = None
    again = [start(server.url), start(server.url)]
    expected = keys(folder)
    for process in again:
        output, errors = process.communicate(timeout=300)
        assert output.split() == expected, errors
    assert not list((cache / "files").glob("*.part"))
    resumed = [int(r.removeprefix("bytes=").rstrip("-")) for _, r, _ in server.requests if r]
    assert resumed and {r for r in resumed if r < 30_000} & {*left.values()}
    whole = {path.name for path in (cache / "files").iterdir()}
    assert all(hashlib.sha256((cache / "files" / name).read_bytes()).hexdigest() == name for name in whole)
    assert not [name for name in os.listdir("/dev/shm") if "latentmill" in name or "loader" in name]


def test_hub_address_is_pinned_and_the_token_stays_at_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "c0ffee" * 6 + "c0ff"
    with serve(folder) as hub, serve(folder) as storage:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
        hub.texts["/api/datasets/me/latents/revision/main"] = f'{{"sha": "{commit}"}}'.encode()
        hub.texts["/api/datasets/me/latents/revision/v1"] = b'{"sha": "1234"}'
        prefix = f"/datasets/me/latents/resolve/{commit}/256/"
        hub.redirects[prefix] = storage.url.replace("127.0.0.1", "localhost") + "/blobs/"
        batches = make_loader("hf://datasets/me/latents/256", 5, **OPTIONS)
        assert [key for batch in batches for key in batch["key"]] == keys(folder)
        assert list(batches.stats()["mixture"]) == [f"hf://datasets/me/latents@{commit}/256"]
        batches.close()
        assert {authorization for _, _, authorization in hub.requests} == {"Bearer hf_secret"}
        assert {authorization for _, _, authorization in storage.requests} == {None}
        hub.faults["/datasets/me/latents/resolve/1234/manifest.json"] = [status(404)]
        with pytest.raises(ValueError, match=r"hf://datasets/me/latents@1234 has no manifest.json"):
            make_loader("hf://datasets/me/latents@v1", 5)
        with pytest.raises(ValueError, match="is not like hf://datasets/USER/REPO"):
            make_loader("hf://models/x", 5)


def test_any_fsspec_address(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder) + "/", "/shards/", recursive=True)
    try:
        assert keys("memory://shards") == keys(folder)
    finally:
        memory.rm("/shards", recursive=True)


def test_an_asynchronous_file_system_works_in_forked_workers(server: Server, folder: Path) -> None:
    """fsspec refuses an instance of such a one that was made before the fork."""
    assert keys(f"simplecache::{server.url}", num_workers=2, multiprocessing_context="fork") == keys(folder)
