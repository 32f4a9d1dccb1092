"""What crosses the wire is counted: a cache that several loaders share, at the least limit that is accepted."""

import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from loader import cache_room, make_loader
from tests.support.faulty_server import Server, serve
from tests.support.keyed_shards import FIELDS, write_shards

ROOT = Path(__file__).parents[2]
IMAGE = [field for field in FIELDS if field.name == "moments_256"]
OPTIONS: dict[str, Any] = {"seed": 1, "shuffle_window": 20, "extras": ["key"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("counts") / "a", [10] * 40, fields=IMAGE)


def least_limit(url: str, **options: Any) -> int:
    with pytest.raises(ValueError, match="cache_limit=1") as error:
        make_loader(url, 5, **{**OPTIONS, **options}, cache_limit=1)
    found = re.search(r"it takes (\d+) bytes", str(error.value))
    assert found
    return int(found[1])


def fetched(server: Server) -> Counter[str]:
    return Counter(path for path, _, _ in server.requests if path.endswith(".tar"))


@pytest.mark.parametrize(("more", "pause"), [(1.0, 0.0), (1.0, 0.01), (2.0, 0.0)])
def test_each_byte_is_fetched_once_at_the_least_limit(
    folder: Path, more: float, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a while without room what is planned goes; on a machine whose cores others hold, that while may pass without cause.
    monkeypatch.setattr(cache_room, "PATIENCE", 60.0)
    with serve(folder) as server:
        limit = least_limit(server.url)
        batches = make_loader(server.url, 5, **OPTIONS, cache_limit=int(more * limit))
        number = 0
        for _ in batches:
            number += 1
            time.sleep(pause)
            if number == 74:  # of 80: a window before the end, where the next epoch's shards begin
                break
        stats = batches.stats()
        batches.close()
        counts = fetched(server)
    assert number == 74 and stats["substitutes"] == 0
    # Beside the first epoch's 40, those that the next one begins with.
    assert sum(counts.values()) <= 1.05 * len(counts) and len(counts) <= 40


def test_a_dataset_of_one_shard_needs_room_for_one(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "one", [40], fields=IMAGE)
    size = (folder / "train-00000.tar").stat().st_size
    with serve(folder) as server:
        assert least_limit(server.url) < 1.1 * size
        batches = make_loader(server.url, 5, **OPTIONS, cache_limit=least_limit(server.url))
        for _ in range(3):
            assert len(list(batches)) == 8
        batches.close()
        assert fetched(server) == {"/train-00000.tar": 1}


def test_a_loader_that_rests_stands_in_nobodys_way(folder: Path, tmp_path: Path) -> None:
    """A validation that was broken off, and a training beside it, in one process and one cache."""
    other = write_shards(tmp_path / "val", [10] * 8, prefix="v", fields=IMAGE)
    with serve(folder) as server, serve(other) as validation:
        limit = 2 * least_limit(server.url)
        val = make_loader(validation.url, 5, **OPTIONS, cache_limit=limit)
        for number, _ in enumerate(val):
            if number == 1:
                break
        begin = time.monotonic()
        train = make_loader(server.url, 5, **OPTIONS, cache_limit=limit)
        keys = [key for batch in train for key in batch["key"]]
        assert len(set(keys)) == 400
        rest = [key for batch in val for key in batch["key"]]
        assert len(rest) == 70
        assert train.stats()["waiting"] < 30 and time.monotonic() - begin < 60
        train.close()
        val.close()
        counts = fetched(server)
    # The next epoch's first shards too, of which some are the same.
    assert sum(counts.values()) <= 1.05 * 40 + 6


PROGRAM = """
import sys, time
from loader import cache_room, make_loader
batches = make_loader(sys.argv[1], 5, seed=1, shuffle_window=20, extras="key", cache_dir=sys.argv[2])
iterator = iter(batches)
next(iterator)
print("begun", flush=True)
sys.stdin.readline()
"""


def test_several_processes_fetch_ahead_beside_each_other(folder: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", [10] * 8, prefix="o", fields=IMAGE)
    with serve(folder) as server, serve(other) as beside:
        idle = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, beside.url, str(tmp_path / "c")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert idle.stdout and idle.stdin and idle.stdout.readline() == "begun\n"
        batches = make_loader(server.url, 5, **OPTIONS, cache_dir=tmp_path / "c")
        for _ in batches:
            time.sleep(0.02)
        misses = batches.stats()["cache_misses"]
        batches.close()
        idle.communicate("\n", timeout=30)
        assert sum(fetched(server).values()) == len(fetched(server))
    # Of 40 tars and sidecars: but for the first window all were there before they were asked for.
    assert misses <= 16
