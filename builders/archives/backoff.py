"""How long to wait for a network that fails: half an hour without progress, in pauses that grow to a minute.

An outage that passes must not end a job of days; one that stays must end it, and say what it waited for.
"""

import contextlib
import email.utils
import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from builders.core.log import logger

PATIENCE = 1800  # seconds of pauses in all
_LONGEST = 60  # seconds of one pause
_LONGEST_ASKED = 600  # seconds, however long a server's Retry-After
PASSING = {408, 425, 429}  # HTTP statuses that may pass, beside those of 500 and above


class Patience:
    """What is left of it. Take a new one after any progress. seconds: of pauses in all; default: PATIENCE."""

    def __init__(self, seconds: float | None = None) -> None:
        self._pause, self._spent = 1.0, 0.0
        self._seconds = PATIENCE if seconds is None else seconds

    def wait(self, what: str, asked: str | None = None) -> bool:
        """Say `what` failed, and pause before the next try; False, at once, when patience is over or others `give_up`.

        asked: the server's Retry-After, which is honoured up to ten minutes and never beyond what patience is left.
        """
        if self._spent >= self._seconds:
            return False
        pause = min(max(self._pause, min(_LONGEST_ASKED, _seconds(asked or ""))), self._seconds - self._spent)
        self._pause, self._spent = min(_LONGEST, 2 * self._pause), self._spent + pause
        logger.warning(f"{what}. Trying again in {pause:.0f} s")
        return not cut_short(pause)


_stop: ContextVar[threading.Event | None] = ContextVar("stop", default=None)


@contextlib.contextmanager
def until(stop: threading.Event) -> Iterator[None]:
    """All who wait within, and in threads that `follow` from within, give up at once when `stop` is set."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def give_up() -> None:
    """Set the `stop` that holds here, if there is one: its owner is about to end."""
    if (stop := _stop.get()) is not None:
        stop.set()


def follow() -> Callable[[], object]:
    """Make what a thread calls first that works for this one, so that the same `stop` holds in it."""
    return functools.partial(_stop.set, _stop.get())


def cut_short(seconds: float) -> bool:
    """Sleep; True, and at once, where it is time to give up."""
    stop = _stop.get() or threading.Event()
    return stop.wait(seconds)


def status_may_pass(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status >= 500 or status in PASSING


def _seconds(retry_after: str) -> float:
    """Read seconds out of a number or an HTTP date; 0 out of neither."""
    if retry_after.isdecimal() and len(retry_after) < 10:
        return float(retry_after)
    if retry_after.isdecimal():
        return _LONGEST_ASKED
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
    return 0.0
