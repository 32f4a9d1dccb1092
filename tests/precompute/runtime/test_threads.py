"""Threads of one piece of work: all stop when one fails, and whoever waits for them waits for their end."""

import signal
import threading
from typing import Any

import pytest

from precompute.runtime.threads import Threads


def test_who_waits_again_after_ctrl_c_waits_for_the_end() -> None:
    """threading.Thread.join, once interrupted, takes a thread that works for one that has ended."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    threads, go = Threads(), threading.Event()
    threads.start(go.wait)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            threads.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    waiting = threading.Thread(target=threads.join)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    go.set()
    waiting.join()


def test_the_first_failure_stops_the_others_and_is_the_one_that_is_raised() -> None:
    threads = Threads()

    def endless() -> None:
        for _ in threads.each(iter(int, 1)):
            pass

    def fail() -> None:
        raise ValueError("the first")

    threads.start(endless)
    threads.start(fail)
    threads.join()
    with pytest.raises(ValueError, match="the first"):
        threads.raise_failure()
