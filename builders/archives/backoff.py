"""How long to wait for a network that fails: half an hour without progress, in pauses that grow to a minute.

An outage that passes must not end a job of days; one that stays must end it, and say what it waited for.
"""

import contextlib
import email.utils
import functools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

from builders.core.log import logger

PATIENCE = 1800  # seconds of pauses in all
_LONGEST = 60  # seconds of one pause
_LOOK = 0.2  # seconds in which a wait sees that one of several stops is set
_LONGEST_ASKED = 600  # seconds of one pause that a server asks for by its Retry-After
PASSING = {408, 425, 429}  # HTTP statuses that may pass, beside those of 500 and above


class Patience:
    """What is left of it. Take a new one after any progress. seconds: of pauses in all; default: PATIENCE.

    longest_asked: seconds of one pause, however long a server's Retry-After.
    """

    def __init__(self, seconds: float | None = None, longest_asked: float = _LONGEST_ASKED) -> None:
        self._pause, self._spent = 1.0, 0.0
        self._seconds = PATIENCE if seconds is None else seconds
        self._longest_asked = longest_asked

    def wait(self, what: str, asked: str | None = None) -> bool:
        """Say `what` failed, and pause before the next try; False, at once, when patience is over or others `give_up`.

        asked: the server's Retry-After, which is honoured up to `longest_asked` and never beyond what patience is left.
        """
        if self._spent >= self._seconds:
            return False
        asked_for = min(self._longest_asked, seconds_asked(asked))
        pause = min(max(self._pause, asked_for), self._seconds - self._spent)
        self._pause, self._spent = min(_LONGEST, 2 * self._pause), self._spent + pause
        left = self._seconds - self._spent
        until = f"for up to {left / 60:.0f} min more" if left else "for the last time"
        logger.warning(f"{what}. Trying again in {pause:.0f} s, {until}")
        return not cut_short(pause)


# Innermost last: each ends the waits of all that is done within it.
_stops: ContextVar[tuple[threading.Event, ...]] = ContextVar("stops", default=())


@contextlib.contextmanager
def until(stop: threading.Event) -> Iterator[None]:
    """All who wait within, and in threads that `follow` from within, give up at once when `stop` is set."""
    token = _stops.set((*_stops.get(), stop))
    try:
        yield
    finally:
        _stops.reset(token)


def give_up() -> None:
    """Set the innermost `stop` that holds here, if there is one: its owner is about to end."""
    for stop in _stops.get()[-1:]:
        stop.set()


def follow() -> Callable[[], object]:
    """Make what a thread calls first that works for this one, so that the same stops hold in it."""
    return functools.partial(_stops.set, _stops.get())


@contextlib.contextmanager
def pool(num_threads: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that work for this one: their waits end with its own, with Ctrl-C, and with the first error of one of them. What is
    not begun by the end is dropped."""
    stop = threading.Event()
    with (
        until(stop),
        ThreadPoolExecutor(num_threads, name, initializer=follow()) as threads,
    ):
        try:
            yield threads
        except BaseException:
            stop.set()
            raise
        finally:
            threads.shutdown(cancel_futures=True)


def cut_short(seconds: float) -> bool:
    """Sleep; True, and at once, where it is time to give up."""
    stops = _stops.get() or (threading.Event(),)
    until = time.monotonic() + seconds
    while not any(stop.is_set() for stop in stops):
        left = until - time.monotonic()
        if left <= 0:
            return False
        stops[-1].wait(left if len(stops) == 1 else min(left, _LOOK))
    return True


def status_may_pass(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status >= 500 or status in PASSING


def seconds_asked(retry_after: str | None) -> float:
    """Read seconds out of a number or an HTTP date, possibly past; 0 out of neither."""
    if retry_after and retry_after.isdecimal():
        return float(retry_after)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return email.utils.parsedate_to_datetime(retry_after or "").timestamp() - time.time()
    return 0.0
