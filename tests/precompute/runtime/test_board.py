"""What a process knows of all units holds until a look shows another thing."""

import random
from pathlib import Path
from typing import Any

import pytest

from precompute.input.units import Unit
from precompute.runtime.board import KEPT, WATCHERS, Board
from precompute.runtime.claims import Turn
from precompute.runtime.leases import Leases
from precompute.shards.output_folder import OutputFolder


def test_a_unit_whose_marker_is_taken_back_is_dealt_again(tmp_path: Path) -> None:
    """--retry-rejected of another process does so: whoever had seen the unit finished must not wait for ever."""
    output = OutputFolder(tmp_path)
    leases = Leases(output, [Unit(index, index) for index in range(5)])
    dealt = []
    while (lease := leases.claim()) is not None:
        dealt.append(lease.unit.index)
        output.put(f"train-{lease.unit.index:05d}.json", b"{}")
        leases.release(lease)
    assert dealt == [0, 1, 2, 3, 4] and leases.board.is_complete
    output.delete("train-00002.json")
    lease = leases.claim()
    assert lease is not None and lease.unit.index == 2
    leases.close()


class Place:
    """A destination, the claims there and a clock, as a board sees them. took: seconds of a look."""

    def __init__(self, units: int, timeout: float = 600.0, took: float = 0.0) -> None:
        self.split, self.held, self.output = "train", list[Any](), self
        self.done, self.turns, self.time, self.took = set[int](), dict[str, Turn](), 0.0, took
        others: Any = self
        self.board = Board(others, [Unit(n, n) for n in range(units)], timeout, others, random.Random(0))

    def finished(self) -> set[int]:
        self.time += self.took
        return set(self.done)

    def survey(self) -> dict[str, Turn]:
        return dict(self.turns)

    def now(self) -> float:
        return self.time

    def picked(self, count: int) -> list[tuple[int, int]]:
        free = [self.board.pick() for _ in range(count)]
        return [(one.unit.index, one.turn) for one in free if one]


def alive(count: int) -> dict[str, Turn]:
    return {f"other-{n}": Turn(1, True) for n in range(count)}


def test_units_come_in_their_order_without_those_in_good_hands() -> None:
    place = Place(6)
    assert place.picked(9) == [], "nothing is known before a look"
    place.done, place.turns = {0}, {"train-00001": Turn(1, True), "train-00003": Turn(4, False)}
    place.board.look()
    assert place.picked(9) == [(2, 1), (3, 5), (4, 1), (5, 1)]


@pytest.mark.parametrize(
    ("took", "others", "timeout", "interval"),
    [
        (0.0, 0, 600.0, 1 / 8),
        (0.0, 80, 600.0, 10.0),
        (0.5, 0, 600.0, 10.0),
        (0.5, 320, 600.0, 40.0),
        (0.5, 3200, 600.0, 400.0),
        (0.5, 3200, 60.0, 60.0),
    ],
)
def test_looks_take_a_share_of_the_time_and_of_the_place(
    took: float, others: int, timeout: float, interval: float
) -> None:
    """A twentieth of a process's time; 32 look at once, and eight a second, of however many; a time-out at most."""
    place = Place(1, timeout, took)
    place.turns = alive(others)
    place.board.look()
    assert place.board.interval == pytest.approx(interval)


@pytest.mark.parametrize(("others", "age"), [(1, 300.0), (WATCHERS, 300.0), (2 * WATCHERS, 600.0)])
def test_one_of_many_looks_within_half_a_time_out(others: int, age: float) -> None:
    place = Place(1)
    assert place.board.is_old()
    place.turns = alive(others)
    place.board.look()
    for now, old in [(0.0, False), (age - 1, False), (age, True), (-1.0, True)]:
        place.time = now
        assert place.board.is_old() == old, now


def test_whoever_loses_a_race_picks_among_more_and_who_wins_among_fewer() -> None:
    place = Place(4 * KEPT)
    place.board.look()
    assert place.picked(3) == [(0, 1), (1, 1), (2, 1)]
    for _ in range(9):
        place.board.lost_race()
    wide = [index for index, _ in place.picked(50)]
    assert max(wide) > KEPT // 2 and len(set(wide)) == 50
    for _ in range(9):
        place.board.won_race()
    assert [index for index, _ in place.picked(20)] == [n for n in range(3, 80) if n not in wide][:20]
