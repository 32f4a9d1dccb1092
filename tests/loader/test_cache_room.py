"""Room in a folder of a limited size: what goes for it, in which order, and what never does."""

import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from loader.cache_room import HORIZON, PATIENCE, STANDSTILL, Room
from loader.private_files import make_private_folder

A, B, C, D = (letter * 64 for letter in "abcd")
NOW, LATE, STUCK = [0.0], [0.0, PATIENCE + 1], [0.0, STANDSTILL + 1]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    make_private_folder(tmp_path / "files")
    return tmp_path / "files"


def lay(files: Path, ages: dict[str, float], size: int = 100) -> None:
    """Files of `size` bytes, used so many seconds ago; of a negative age, needed in so many seconds."""
    for name, age in ages.items():
        (files / name).write_bytes(bytes(size))
        os.utime(files / name, (time.time() - age,) * 2)


def take(room: Room, files: Path, name: str, size: int, waiting: Iterable[float] | None = None) -> int | None:
    return room.take(files / f"{name}.{size}.part", size, waiting)


def left(files: Path) -> set[str]:
    return {path.name for path in files.iterdir()}


@pytest.mark.parametrize(("size", "removed"), [(100, 0), (101, 1), (200, 1), (201, 2), (300, 2)])
def test_no_more_goes_than_it_takes_and_the_oldest_first(files: Path, size: int, removed: int) -> None:
    lay(files, {A: 10, B: 20})
    assert take(Room(files, 300), files, C, size) == removed
    assert left(files) == {*(A, B)[: 2 - removed], f"{C}.{size}.part"}


def test_without_a_limit_nothing_goes_and_no_part_is_laid(files: Path) -> None:
    lay(files, {A: 10})
    assert take(Room(files, None), files, C, 10**15) == 0
    assert left(files) == {A}


def test_nothing_is_removed_in_vain(files: Path) -> None:
    lay(files, {A: 10, B: -HORIZON})
    assert take(Room(files, 300), files, C, 250) is None
    assert left(files) == {A, B}


def test_what_is_used_or_fetched_stays_and_another_goes(files: Path) -> None:
    lay(files, {A: 10, B: 30, D: 20})
    with open(files / B, "rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        assert take(Room(files, 300), files, C, 100) == 1
        assert left(files) == {A, B, f"{C}.100.part"}


def test_a_part_takes_what_it_will_be_once_and_for_all_processes(files: Path) -> None:
    one, other = Room(files, 300), Room(files, 300)
    assert take(one, files, A, 200) == 0
    assert take(other, files, A, 200) == 0, "it is laid already"
    assert take(other, files, B, 101) is None
    assert take(other, files, B, 100) == 0
    assert take(one, files, C, 1) is None
    assert left(files) == {f"{A}.200.part", f"{B}.100.part"}


def test_a_part_of_unknown_size_is_taken_for_a_share_of_the_limit(files: Path) -> None:
    room = Room(files, 3200)
    assert take(room, files, A, 0) == 0
    assert take(room, files, B, 3101) is None
    assert take(room, files, B, 3100) == 0


@pytest.mark.parametrize("waiting", [None, NOW, LATE])
def test_what_loaders_plan_to_read_goes_when_nobody_makes_room_for_a_while(
    files: Path, waiting: list[float] | None
) -> None:
    """The last of it first; of one's own plan nothing that comes sooner than what the room is for."""
    lay(files, {A: 0, B: 0, D: 0})
    room, other = Room(files, 300), Room(files, 300)
    other.plan([D, "nothing"])
    room.plan([A, C, B])
    assert take(room, files, C, 250, waiting) is None
    removed = take(room, files, C, 100, waiting)
    if waiting == LATE:
        assert removed == 1 and left(files) == {A, D, f"{C}.100.part"}
        assert take(room, files, "e" * 64, 300, LATE) == 3, "of what nobody here plans to read"
    else:
        assert removed is None and left(files) == {A, B, D}


def test_what_was_planned_by_a_process_that_died_is_soon_forgotten(files: Path) -> None:
    """What it would have needed last first, and all of it within HORIZON seconds."""
    lay(files, {A: 10, B: 10, C: 10})
    now = time.time()
    Room(files, 300).plan([B, A, C])
    first, second, third = ((files / name).stat().st_mtime - now for name in (B, A, C))
    assert 0 < third < second < first < HORIZON + 1


def test_what_is_released_goes_first(files: Path) -> None:
    lay(files, {A: 1000, B: -HORIZON, D: 10})
    room = Room(files, 300)
    room.release(B)
    assert take(room, files, C, 100) == 1
    assert left(files) == {A, D, f"{C}.100.part"}


def test_the_limit_is_exceeded_when_all_of_it_stands_still_and_nobody_is_fetching(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay(files, {A: 0})
    room, asked = Room(files, 100), list[str]()
    beside, *elsewhere = Room(files, 100), Room(files.parent, 100), Room(files / "z", 100)
    beside.share(lambda: asked.append("beside"))
    for other in elsewhere:
        other.share(lambda: asked.append("elsewhere"))
    room.share(lambda: asked.append("here"))
    with open(files / A, "rb") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        part = files / f"{B}.50.part"
        assert room.take(part, 50, STUCK, {"somebody"}) is None
        assert not caplog.text and sorted(asked) == ["beside"] * 2 + ["here"] * 2
        for _ in range(2):
            assert room.take(part, 50, STUCK) == 0
    assert caplog.text.count("the cache exceeds its limit of 100 bytes") == 1
