"""Waits of the tests: for a thing rather than for a time, and by a clock that a test moves."""

import time
from collections.abc import Callable, Iterator

import pytest

from builders.archives.backoff import cut_short


def wait_until(there: Callable[[], object], seconds: float = 200.0) -> None:
    """Return as soon as `there()` is true. It fails after a time that only a hang takes, however busy the machine is."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.005)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited for a network."""
    waited: list[float] = []
    monkeypatch.setattr("builders.archives.backoff.cut_short", waited.append)
    return waited


def hurried(seconds: float) -> bool:
    """`backoff.cut_short` for tests: a wait that does not take as long as it says."""
    return cut_short(min(seconds, 0.01))


class Clock:
    """`time.monotonic` that runs as ever, and jumps ahead when it is told to."""

    def __init__(self) -> None:
        self._real, self._ahead = time.monotonic, 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The clock of this process, in the test's hands; waits that take a time-out keep to the real one."""
    moved = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", moved)
        yield moved
