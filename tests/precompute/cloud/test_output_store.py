"""The place of the shards in a store: what a folder promises, held by conditional writes alone."""

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import MemoryStore

from loader.format import Marker, Shard
from precompute.cloud.client import Client
from precompute.cloud.output_store import OutputStore
from precompute.cloud.scratch import LOCK, Scratch
from precompute.errors import LostLease
from precompute.input.units import Unit
from precompute.runtime.claims import Claims
from precompute.runtime.leases import Leases
from precompute.shards.destination import Destination
from precompute.shards.output_folder import OutputFolder
from tests.support.waiting import Clock


class Counting(Client):
    """A client that counts its requests by verb."""

    def __init__(self, store: Any) -> None:
        super().__init__("--output", "s3://bucket/x", store)
        self.counts: dict[str, int] = {}

    def ask(self, call: Callable[[], Any], conflicts: Any = ()) -> Any:
        self.counts["ask"] = self.counts.get("ask", 0) + 1
        return super().ask(call, conflicts)

    def list(self, prefix: str | None = None, after: str | None = None) -> Iterator[Any]:
        """A page holds a thousand, and is asked for once somebody comes to it."""
        for number, found in enumerate(super().list(prefix, after)):
            self.counts["list"] = self.counts.get("list", 0) + (number % 1000 == 0)
            yield found


def output(store: Any, scratch: Path, client: Client | None = None) -> OutputStore:
    scratch.mkdir(exist_ok=True)
    return OutputStore(client or Client("--output", "s3://bucket/x", store), "train", scratch)


@pytest.fixture(params=["folder", "store"])
def destination(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Destination]:
    (tmp_path / "out").mkdir()
    folder = request.param == "folder"
    with contextlib.closing(
        OutputFolder(tmp_path / "out") if folder else output(MemoryStore(), tmp_path)
    ) as made:
        yield made


def test_a_write_over_another_version_is_refused(destination: Destination) -> None:
    def version() -> Any:
        found = destination.entry("manifest.json")
        return found.version if found else None

    first = version()
    assert destination.swap("manifest.json", b"one", first)
    second = version()
    assert not destination.swap("manifest.json", b"late", first)
    assert destination.swap("manifest.json", b"two", second)
    assert not destination.swap("manifest.json", b"late", second)
    assert (
        not destination.swap("manifest.json", b"late", first) and destination.get("manifest.json") == b"two"
    )
    destination.delete("manifest.json")
    assert not destination.swap("manifest.json", b"late", second) and version() is None


def test_control_files_are_a_folders(destination: Destination) -> None:
    assert destination.create("a.lease-1", b'{"token": 1}') and not destination.create("a.lease-1", b"{}")
    before = destination.version("a.lease-1")
    destination.touch("a.lease-1")
    destination.controls()
    assert destination.version("a.lease-1") != before is not None
    assert json.loads(destination.read("a.lease-1")) == {"token": 1}
    assert destination.controls() == ["a.lease-1"] and (destination.time("a.lease-1") or 0) > 10**18
    destination.remove("a.lease-1")
    destination.remove("a.lease-1")
    destination.touch("a.lease-1")
    assert destination.controls() == [] and destination.read("a.lease-1") == b""
    assert destination.version("a.lease-1") is None and destination.time("a.lease-1") is None


def test_finished_files_are_a_folders(destination: Destination) -> None:
    begun = destination.begin("train-00003", "1-me")
    (begun / "0.tar").write_bytes(b"tar")
    assert destination.publish({".tar": begun / "0.tar"}, "train-00003") == "train-00003"
    destination.mark("train-00003", b"m" * 100, {"train-00003.tar"}, begun)
    destination.end(begun)
    assert not begun.exists()
    assert destination.finished() == {3} and destination.is_finished(3) and not destination.is_finished(2)
    destination.put("manifest.json", b"one")
    destination.put("manifest.json", b"two")
    assert [*destination.get_many(["manifest.json", "train-00003.tar", "none"])] == [b"two", b"tar", None]
    entry = destination.entry("train-00003.tar")
    assert entry is not None and entry.size == 3 and destination.entry("none") is None
    assert destination.files(lambda name: name.endswith(".tar")) == {"train-00003.tar": entry}
    destination.delete("train-00003.json")
    assert destination.get("train-00003.json") is None and not destination.is_finished(3)


def test_one_of_many_claims_a_name(tmp_path: Path) -> None:
    store = MemoryStore()
    claims = [Claims(output(store, tmp_path), 60) for _ in range(8)]
    won: list[Any] = []
    threads = [threading.Thread(target=lambda c=c: won.append(c.take("train-00000", 1))) for c in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in won) == 1
    for c in claims:
        c.close()


class Baton:
    """Lets one of two threads make one request at a time, in an order drawn from a seed."""

    def __init__(self, seed: int) -> None:
        self._chance, self._turns = random.Random(seed), threading.Condition()
        self._waiting: set[str] = set()
        self._alive = {"old", "new"}
        self._next: str | None = None

    def step(self) -> None:
        name = threading.current_thread().name
        with self._turns:
            self._waiting.add(name)
            self._draw()
            self._turns.wait_for(lambda: self._next == name)
            self._next = None
            self._waiting.discard(name)

    def leave(self) -> None:
        with self._turns:
            self._alive.discard(threading.current_thread().name)
            self._draw()

    def _draw(self) -> None:
        if self._next is None and self._alive and self._waiting >= self._alive:
            self._next = self._chance.choice(sorted(self._alive))
            self._turns.notify_all()


class Stepped(Client):
    def __init__(self, store: Any, baton: Baton) -> None:
        super().__init__("--output", "s3://bucket/x", store)
        self._baton = baton

    def ask(self, call: Callable[[], Any], conflicts: Any = ()) -> Any:
        self._baton.step()
        return super().ask(call, conflicts)


SHARDS = {"old": 2, "new": 1}


def contents(who: str, number: int, differ: bool) -> bytes:
    return f"{who if differ else 'both'} {number}".encode() * 5


def marker_of(names: list[str], who: str) -> Marker:
    shards = tuple(Shard(name, 1, 1, 10, "0" * 64, "0" * 64) for name in names)
    return Marker("train", 0, {}, (), {"units": 1}, shards, timings={"by": who})


def meet(folder: Path, store: Any, seed: int, differ: bool) -> dict[str, str]:
    """What becomes of the two owners."""
    baton, result = Baton(seed), dict[str, str]()

    def own(who: str, turn: int) -> None:
        place = output(store, folder / f"{who}-{seed}", Stepped(store, baton))
        try:
            begun = place.begin("train-00000", f"{turn}-{who}")
            names = []
            for number in range(SHARDS[who]):
                (begun / f"{number}.tar").write_bytes(contents(who, number, differ))
                names.append(
                    place.publish({".tar": begun / f"{number}.tar"}, f"train-00000-{number + 1:02d}")
                )
            place.mark("train-00000", marker_of(names, who).to_json().encode(), set(), begun)
            result[who] = "finished"
        except LostLease:
            result[who] = "lost"
        finally:
            baton.leave()
            place.close()

    threads = [threading.Thread(target=own, args=given, name=given[0]) for given in (("old", 1), ("new", 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return result


@pytest.mark.parametrize("differ", [True, False])
def test_two_owners_of_a_unit_in_any_order_of_their_requests(tmp_path: Path, differ: bool) -> None:
    """The one was presumed dead, and is not; it may have made other bytes, and other files. Whatever marker there is in the
    end, the files it names are those of its owner."""
    outcomes = set()
    for seed in range(150):
        store = MemoryStore()
        result = meet(tmp_path, store, seed, differ)
        marker = Marker.from_json(bytes(obstore.get(store, "train-00000.json").bytes()))
        owner = marker.timings["by"]
        assert result == {owner: "finished", ({"old", "new"} - {owner}).pop(): "lost"}, (seed, result)
        for number, shard in enumerate(marker.shards):
            there = bytes(obstore.get(store, f"{shard.name}.tar").bytes())
            assert there == contents(owner, number, differ), (seed, owner)
        left = {entry["path"] for chunk in obstore.list(store) for entry in chunk}
        assert left >= {f"{shard.name}.tar" for shard in marker.shards}
        if not differ:
            names = [f"train-00000-{number + 1:02d}" for number in range(SHARDS[owner])]
            assert [shard.name for shard in marker.shards] == names
        outcomes.add(owner)
    assert outcomes == {"old", "new"}


def test_what_another_owner_left_is_not_written_over_and_goes(tmp_path: Path) -> None:
    """It died, and its values are not ours: the marker names a file of our own, and nothing else of the unit stays."""
    store = MemoryStore()
    for name in ("train-00000.tar", "train-00000-02.parquet", "train-00001.tar", "train-000000.tar"):
        obstore.put(store, name, b"other bytes")
    place = output(store, tmp_path)
    begun = place.begin("train-00000", "2-me")
    (begun / "0.tar").write_bytes(b"mine")
    name = place.publish({".tar": begun / "0.tar"}, "train-00000")
    assert name == "train-00000-50"
    place.mark("train-00000", marker_of([name], "me").to_json().encode(), {f"{name}.tar"}, begun)
    place.close()
    left = {entry["path"] for chunk in obstore.list(store) for entry in chunk}
    assert left == {"train-00000-50.tar", "train-00000.json", "train-00001.tar", "train-000000.tar"}


def test_requests_do_not_grow_with_what_is_finished(tmp_path: Path, clock: Clock) -> None:
    """3,900 of 4,000 units are finished: to claim one more, and to give it back, is a handful of requests."""
    store = MemoryStore()
    for unit in range(3900):
        for end in ("tar", "parquet", "json"):
            obstore.put(store, f"train-{unit:05d}.{end}", b"m" * 100)
    client = Counting(store)
    leases = Leases(output(store, tmp_path, client), [Unit(index, index) for index in range(4000)], 60)
    first = leases.claim()
    assert first is not None and first.unit.index == 3900
    assert client.counts["list"] < 20
    client.counts.clear()
    clock.advance(3600)
    second = leases.claim()
    assert second is not None and second.unit.index == 3901
    leases.release(second)
    assert client.counts.get("list", 0) <= 5 and client.counts["ask"] <= 6, client.counts
    leases.close()


@pytest.mark.parametrize("scheme, pages", [("s3", 5), ("az", 12)])
def test_what_is_known_to_be_finished_is_not_listed_again_behind_a_straggler(
    tmp_path: Path, clock: Clock, scheme: str, pages: int
) -> None:
    """Units 5 and 2,000 hang while others finish the rest; Azure would list all from the beginning each time."""
    store = MemoryStore()
    client = Counting(store)
    client.url = f"{scheme}://bucket/x"
    place, there = output(store, tmp_path, client), set[int]()
    for last in (3000, 3990, 4000):
        expected = set(range(last)) - ({5, 2000} if last < 4000 else set())
        for unit in expected - there:
            for end in ("tar", "parquet", "json"):
                obstore.put(store, f"train-{unit:05d}.{end}", b"m")
        there = expected
        client.counts.clear()
        clock.advance(3600)
        assert place.finished() == expected
        if last == 3990:
            assert client.counts["list"] == pages
    place.close()


def test_scratch_of_the_dead_is_cleared_away_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "latentmill-dead").mkdir()
    (tmp_path / "latentmill-dead" / LOCK).touch()
    (tmp_path / "latentmill-of-mine").mkdir()
    (tmp_path / "latentmill-of-mine" / "photo.jpg").touch()
    first, second = Scratch(tmp_path), Scratch(tmp_path)
    assert first.folder.is_dir() and second.folder.is_dir() and first.folder != second.folder
    assert (
        not (tmp_path / "latentmill-dead").exists()
        and (tmp_path / "latentmill-of-mine" / "photo.jpg").exists()
    )
    first.close()
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["latentmill-of-mine"]
