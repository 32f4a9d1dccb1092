"""Fetching ahead: counted in shards asked for, beyond those that the batches begun so far need."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loader.remote
from loader import make_loader
from tests.support.faulty_server import Server, serve, status
from tests.support.keyed_shards import FIELDS, write_shards
from tests.support.waiting import wait_until

ONE_FIELD = [field for field in FIELDS if field.name == "moments_256"]
# One batch ahead, in the order of the shards: what is begun is known. Ten samples a shard, five a batch.
OPTIONS: dict[str, Any] = {"extras": ["key"], "seed": 1, "shuffle": False, "prefetch": 1}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.05)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Twelve shards."""
    with serve(write_shards(tmp_path / "shards", [10] * 12, fields=ONE_FIELD)) as running:
        yield running


def asked(server: Server) -> Counter[int]:
    """How often each shard's tar was asked for."""
    paths = [path for path, *_ in list(server.requests)]
    return Counter(int(path[-9:-4]) for path in paths if path.endswith(".tar"))


def test_a_window_is_fetched_ahead_and_no_more(server: Server) -> None:
    batches = make_loader(server.url, 5, shuffle_window=40, **OPTIONS)
    next(iter(batches))  # batches 0 to 1 are begun: the first shard
    wait_until(lambda: set(asked(server)) >= {0, 1, 2, 3, 4})
    batches.close()
    assert max(asked(server)) <= 5


def test_the_next_epoch_is_fetched_before_this_one_ends(server: Server, tmp_path: Path) -> None:
    tar = (tmp_path / "shards" / "train-00000.tar").stat().st_size
    batches = make_loader(server.url, 5, shuffle_window=10, cache_limit=int(4.5 * tar), **OPTIONS)
    assert len(list(batches)) == 24  # two more are begun, of the first shard, which is no longer here
    wait_until(lambda: asked(server)[1] >= 2)
    batches.close()


def test_the_trainer_finds_in_the_cache_what_was_fetched_ahead(server: Server) -> None:
    batches = make_loader(server.url, 5, shuffle_window=40, **OPTIONS)
    iterator = iter(batches)
    next(iterator)
    for number in range(1, 24):
        wait_until(lambda number=number: len(asked(server)) >= min(12, number // 2 + 4))
        next(iterator)
    batches.close()
    assert set(asked(server).values()) == {1}, "each tar once"


def test_close_waits_for_no_server_that_is_down(server: Server) -> None:
    """Batches in the foreground wait as long as the server asks, beside the four that fetch ahead."""
    server.faults["/train-00000.tar"] = []
    for number in range(1, 12):
        server.faults[f"/train-{number:05d}.tar"] = [status(503, Retry_After="90")] * 100_000
    many = {**OPTIONS, "prefetch": 13, "num_threads": 14}
    batches = make_loader(server.url, 5, shuffle_window=60, patience=3600, **many)
    next(iter(batches))
    wait_until(lambda: set(asked(server)) >= {1, 2, 3, 4, 5, 6})
    closing = threading.Thread(target=batches.close)
    closing.start()
    closing.join(30)
    in_time = not closing.is_alive()
    server.faults.clear()
    closing.join()
    assert in_time, "it waited for the server"
    before = asked(server)
    assert len(list(batches)) == 23, "what was closed goes on where it was"
    assert sum(asked(server).values()) > sum(before.values())
    batches.close()
