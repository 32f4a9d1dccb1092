"""The first batch of a cold remote epoch waits for its own bytes: counted in bytes and requests, never in seconds."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import loader.early
import loader.http_ranges
import loader.partial
import loader.prefetch
import loader.remote
from loader import DataError, make_loader
from loader.format import Field
from loader.stopping import Stopped
from tests.support.batches import all_same, same
from tests.support.faulty_server import Fault, Handler, Server, ignore_range, serve, status, wrong_bytes
from tests.support.keyed_shards import FIELDS, write_shards
from tests.support.waiting import wait_until

IMAGE = [field for field in FIELDS if field.name == "moments_256"]
PADDED: list[Field] = [
    field for field in FIELDS if field.name in ("moments_256", "latents_512", "caption_latents")
]
OPTIONS: dict[str, Any] = {"extras": ["key"], "seed": 3, "resolution": 256, "num_threads": 1}
SHARDS, EACH = 4, 60
BATCH = 8  # of 240: a thirtieth of the dataset
LARGEST = 400  # bytes of a member; what lies between two is larger


@pytest.fixture(autouse=True)
def no_shard_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.early, "SMALL", 0)
    monkeypatch.setattr(loader.partial, "JOIN", 0)
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("first") / "a", [EACH] * SHARDS, fields=PADDED)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as running:
        yield running


def tars(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def sent(server: Server) -> int:
    return sum(count for path, count in server.sent.items() if path.endswith(".tar"))


def hold_back(server: Server) -> threading.Event:
    """Whole tars, and the gaps between members, come only when the event is set."""
    let = threading.Event()

    def late(handler: Handler, body: bytes) -> None:
        if len(body) > LARGEST:
            let.wait(60)
        handler.send_slowly(body)

    for number in range(SHARDS):
        server.faults[f"/train-{number:05d}.tar"] = [late] * 10_000
    return let


def test_the_first_batch_comes_while_no_shard_does(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.early, "BATCHES", 1)
    let = hold_back(server)
    batches = make_loader(server.url, BATCH, **OPTIONS)
    first = next(iter(batches))
    assert sent(server) < tars(folder) / 20, "its own bytes and no more"
    # A latent and a caption of each sample, with a member between them.
    assert batches.stats()["ranges"] <= 2 * BATCH
    assert all(range_ for path, range_, _ in list(server.requests) if path.endswith(".tar"))
    let.set()
    local = make_loader(folder, BATCH, **OPTIONS)
    assert same(first, next(iter(local)))
    batches.close()
    local.close()


@pytest.mark.parametrize("batch_size", [BATCH, 20, 60])
@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 2}, {"flip_prob": 0.0, "caption_drop_prob": 0.5}, {"subset": (0, 0.8)}]
)
def test_an_epoch_is_the_local_one_and_no_byte_comes_twice(
    server: Server, folder: Path, batch_size: int, options: dict[str, Any]
) -> None:
    """Also where the first batch is a twelfth of the dataset, or a quarter, which comes whole.

    One process fetches its first batch once, and leaves it out of what follows: the gaps come over a few connections.
    """
    batches = make_loader(server.url, batch_size, **OPTIONS, **options)
    local = make_loader(folder, batch_size, **OPTIONS, **options)
    assert all_same(batches, local)
    stats = batches.stats()
    batches.close()
    local.close()
    workers = options.get("num_workers", 1)
    assert sent(server) <= (1.05 if workers > 1 else 1 + loader.early.LATER) * tars(folder)
    whole = loader.prefetch.THREADS * loader.http_ranges.AHEAD
    assert server.most_connections <= workers * (whole + loader.http_ranges.AT_ONCE)
    assert stats["substitutes"] == 0
    if not options:
        assert stats.get("ranges", 0) >= (2 * batch_size if batch_size < 60 else 0)
        asked = len([path for path, *_ in server.requests if path.endswith(".tar")])
        assert asked <= stats.get("ranges", 0) + 2 * batch_size + 2 * SHARDS, (
            "a gap before each span, and one behind"
        )
    again = make_loader(server.url, batch_size, **OPTIONS, **options)
    before = sent(server)
    assert len(list(again)) == len(again) and sent(server) == before and "ranges" not in again.stats()
    again.close()


def test_shards_that_come_as_fast_are_fetched_whole(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.early, "SMALL", 1 << 25)
    batches = make_loader(server.url, BATCH, **OPTIONS)
    assert len(list(batches)) == 30
    batches.close()
    assert not any(range_ for _, range_, _ in server.requests)


def damaged_range(handler: Handler, body: bytes) -> None:
    handler.start(body)
    handler.wfile.write(body[:-1] + bytes([body[-1] ^ 1]))


def other_range(handler: Handler, body: bytes) -> None:
    handler.range = "bytes 0-9/10"
    handler.start(body)
    handler.wfile.write(body)


def too_short(handler: Handler, body: bytes) -> None:
    handler.start(body[:-5])
    handler.wfile.write(body[:-5])


@pytest.mark.parametrize(
    "fault", [ignore_range, status(416), status(503), other_range, too_short, wrong_bytes]
)
def test_a_server_of_no_ranges_costs_nothing_but_the_wait(server: Server, folder: Path, fault: Fault) -> None:
    """Whoever cannot answer a request for a range is asked for the whole; what is no array is fetched again."""

    def no_range(handler: Handler, body: bytes) -> None:
        last = (handler.headers["Range"] or "-").partition("-")[2]
        (fault if last else Handler.send_slowly)(handler, body)

    for number in range(SHARDS):
        server.faults[f"/train-{number:05d}.tar"] = [no_range] * 10_000
    batches = make_loader(server.url, BATCH, **OPTIONS)
    local = make_loader(folder, BATCH, **OPTIONS)
    assert all_same(batches, local)
    assert batches.stats()["substitutes"] == 0
    batches.close()
    local.close()
    ranged = [range_ for path, range_, _ in server.requests if range_ and not range_.endswith("-")]
    assert len(ranged) <= (1 if fault is not wrong_bytes else 8 * 2 * BATCH)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("on_error", ["substitute", "raise"])
def test_what_was_wrong_by_range_is_told_and_is_in_no_file(
    server: Server,
    folder: Path,
    cache: Path,
    processes: int,
    on_error: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A bit is flipped on the way, in what the whole shard is spared, or not: no header shows it, but the whole shard does."""
    monkeypatch.setattr("loader.dataset.processes_here", lambda world_size: processes)
    server.faults["/train-00000.tar"] = [damaged_range]
    batches = make_loader(server.url, 8, on_error=on_error, **OPTIONS)
    if on_error == "raise":
        with pytest.raises(
            DataError, match=r"1 byte ranges that the first batches were read from.*begin again"
        ):
            list(batches)
        batches.close()
        batches = make_loader(server.url, 8, on_error=on_error, **OPTIONS)
    assert len(list(batches)) == 30
    assert batches.stats().get("wrong_ranges", 0) == (on_error == "substitute")
    batches.close()
    assert "train-00000.tar: 1 byte ranges that the first batches were read from were not what" in caplog.text
    whole = {path.read_bytes() for path in (cache / "files").iterdir()}
    assert all(path.read_bytes() in whole for path in folder.glob("*.tar"))


def test_nothing_is_left_of_a_loader_that_was_closed_before(server: Server, cache: Path) -> None:
    let = hold_back(server)
    batches = make_loader(server.url, BATCH, **OPTIONS)
    first = next(iter(batches))
    let.set()
    batches.close()
    names = [path.name for path in (cache / "files").iterdir()]
    assert all(len(name.partition(".")[0]) == 64 for name in names)
    del batches
    again = make_loader(server.url, BATCH, **OPTIONS)
    assert first["key"] == next(iter(again))["key"]
    again.close()


def test_ranges_are_asked_for_where_the_file_was_found_to_lie(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub gets one request a file or two, and no token goes to where it redirects."""
    import huggingface_hub

    commit = "c0ffee" * 6 + "c0ff"
    with serve(folder) as hub, serve(folder) as storage:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
        hub.texts["/api/datasets/me/latents/revision/main"] = f'{{"sha": "{commit}"}}'.encode()
        hub.redirects[f"/datasets/me/latents/resolve/{commit}/"] = (
            storage.url.replace("127.0.0.1", "localhost") + "/blobs/"
        )
        let = hold_back(storage)
        for number in range(SHARDS):
            storage.faults[f"/blobs/train-{number:05d}.tar"] = storage.faults[f"/train-{number:05d}.tar"]
        monkeypatch.setattr("loader.http_ranges.AT_ONCE", 2)
        batches = make_loader("hf://datasets/me/latents", 16, **OPTIONS)
        next(iter(batches))
        ranged = [path for path, range_, _ in hub.requests if range_]
        assert (
            len([path for path, range_, _ in storage.requests if range_]) >= 32 and len(ranged) <= 2 * SHARDS
        )
        let.set()
        batches.close()
        assert {authorization for _, _, authorization in hub.requests} == {"Bearer hf_secret"}
        assert {authorization for _, _, authorization in storage.requests} == {None}


def test_any_fsspec_address_is_read_by_ranges(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder) + "/", "/first/", recursive=True)
    read: list[int] = []
    whole = type(memory).cat_ranges
    monkeypatch.setattr(
        type(memory),
        "cat_ranges",
        lambda self, paths, *a, **k: (read.append(len(paths)), whole(self, paths, *a, **k))[1],
    )
    try:
        batches, local = (
            make_loader("memory://first", BATCH, **OPTIONS),
            make_loader(folder, BATCH, **OPTIONS),
        )
        assert same(next(iter(batches)), next(iter(local))) and read[0] == 2 * BATCH
        batches.close()
        local.close()
    finally:
        memory.rm("/first", recursive=True)


def test_close_while_the_first_batch_is_on_its_way(server: Server) -> None:
    for number in range(SHARDS):
        server.faults[f"/train-{number:05d}.parquet"] = [status(503, Retry_After="90")] * 1000
    batches = make_loader(server.url, BATCH, patience=3600, **{**OPTIONS, "num_threads": 3})
    ended = threading.Event()

    def take() -> None:
        with pytest.raises(Stopped):
            next(iter(batches))
        ended.set()

    threading.Thread(target=take, daemon=True).start()
    wait_until(lambda: any(path.endswith(".parquet") for path, *_ in server.requests))
    batches.batches.stop_fetching()
    assert ended.wait(30)


def test_neighbours_are_joined() -> None:
    offsets, sizes = np.array([100, 0, 40]), np.array([10, 30, 20])
    assert loader.partial.spans_of(offsets, sizes) == [(0, 30), (40, 60), (100, 110)]
