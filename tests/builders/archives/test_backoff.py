"""Who waits for a network, and who ends the wait."""

import email.utils
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from builders.archives.backoff import (
    PATIENCE,
    Patience,
    cut_short,
    follow,
    give_up,
    pool,
    seconds_asked,
    status_may_pass,
    until,
)


def date(seconds: float) -> str:
    """An HTTP date so far ahead of now."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


def test_pauses_grow_to_a_minute_and_end_with_patience(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    patience = Patience()
    while patience.wait("the server answered 503"):
        assert len(waits) < 100
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60] and max(waits) == 60
    assert sum(waits) == PATIENCE and not patience.wait("the server answered 503")
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "the server answered 503. Trying again in 1 s, for up to 30 min more"
    assert said[-1].endswith(f"in {waits[-1]:.0f} s, for the last time") and len(said) == len(waits)


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (None, [1, 2]),
        ("30", [30, 30]),
        ("9000", [600, 600]),
        ("0", [1, 2]),
        ("soon", [1, 2]),
        ("-30", [1, 2]),
        (-60.0, [1, 2]),
        (9000.0, [600, 600]),
    ],
)
def test_what_a_server_asks_for_is_kept_to_within_bounds(
    waits: list[float], asked: str | float | None, first: list[float]
) -> None:
    """A number is one of seconds from now, given as a date."""
    asked = date(asked) if isinstance(asked, float) else asked
    patience = Patience()
    assert [patience.wait("", asked) for _ in first] == [True] * len(first)
    assert waits == first
    while patience.wait("", asked):
        assert len(waits) < 100
    assert sum(waits) == PATIENCE


def test_patience_of_any_length(waits: list[float]) -> None:
    one, other = Patience(5.0), Patience(50.0, longest_asked=20.0)
    while one.wait("") or other.wait("", "30"):
        assert len(waits) < 100
    assert waits == [1, 2, 2, 20, 20, 10]
    assert not Patience(0.0).wait("")


def test_dates_and_numbers_are_seconds() -> None:
    assert [seconds_asked(text) for text in ("90", "0", "", None, "x", "1e3")] == [90, 0, 0, 0, 0, 0]
    assert 50 < seconds_asked(date(60)) <= 60 and seconds_asked(date(-60)) < 0


def test_statuses_that_may_pass() -> None:
    passing = {status for status in range(100, 600) if status_may_pass(status)}
    assert passing == {408, 425, 429, *range(500, 600)}


def test_waits_of_a_pool_end_with_its_owners() -> None:
    begun = threading.Event()

    def wait() -> bool:
        begun.set()
        return cut_short(600)

    with until(threading.Event()), pool(1, "work") as threads:
        waiting, dropped = threads.submit(wait), threads.submit(cut_short, 0.0)
        assert begun.wait(60)
        give_up()
        assert waiting.result(60)
    assert dropped.cancelled() or dropped.result(60)
    with pytest.raises(KeyboardInterrupt), pool(1, "work") as threads:
        waiting = threads.submit(cut_short, 600)
        raise KeyboardInterrupt
    assert waiting.cancelled() or waiting.result(60)


def test_an_error_of_one_ends_the_waits_of_the_others() -> None:
    """What one thread of a pool raises is told at once, and not after the pause of another; what waits elsewhere waits on."""
    begun = threading.Event()
    waiting = list[bool]()

    def work(number: int) -> None:
        if number == 0:
            begun.set()
            waiting.append(cut_short(600))
        assert begun.wait(60)
        raise ValueError(number)

    outer = threading.Event()
    with until(outer):
        with pytest.raises(ValueError, match="1"), pool(2, "work") as threads:
            first, second = (threads.submit(work, number) for number in range(2))
            second.result(60)
        assert waiting == [True] and first.done()
        assert not outer.is_set() and not cut_short(0.0)


def test_who_gives_up_ends_the_waits_of_its_own_threads_and_of_nobody_else() -> None:
    """Two jobs in one process: one stops, the other still has its half hour."""
    waiting = threading.Barrier(3)

    def wait(seconds: float) -> bool:
        waiting.wait(60)
        return Patience().wait("the server answered 503", str(seconds))

    with until(threading.Event()):
        with ThreadPoolExecutor(2, initializer=follow()) as ours:
            with until(threading.Event()), ThreadPoolExecutor(1, initializer=follow()) as theirs:
                stopped = [ours.submit(wait, 600) for _ in range(2)]
                waiting.wait(60)
                other = theirs.submit(cut_short, 0.01)
                assert not other.result(60)
                assert not any(one.done() for one in stopped)
            give_up()
            assert [one.result(60) for one in stopped] == [False, False]
            assert cut_short(600), "who comes later does not begin to wait"
    assert not cut_short(0.0)


def test_nobody_is_told_where_nothing_was_agreed_upon() -> None:
    give_up()
    assert not cut_short(0.0)
