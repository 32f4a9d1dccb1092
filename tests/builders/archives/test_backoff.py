"""Who waits for a network, and who ends the wait."""

import threading
from concurrent.futures import ThreadPoolExecutor

from builders.archives.backoff import Patience, cut_short, follow, give_up, until


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
