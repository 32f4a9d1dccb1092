"""The waits of a loader, which end when it is closed."""

import logging
import threading
import time
from collections.abc import Iterator

log = logging.getLogger("loader")

POLL = 0.05  # seconds
STALL = 30.0  # seconds of waiting before a line in the log


class Stopped(Exception):
    """The loader was closed while a file was being fetched."""


class Stop:
    """Ends what its loader's threads fetch or wait for."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Fetch again, after `set` or in another process; who waits since before then is not called back."""
        self._event = threading.Event()

    def set(self) -> None:
        """Have all that fetch or wait raise Stopped."""
        self._event.set()

    def check(self, what: str, seconds: float = 0.0) -> None:
        """Pause. Raises Stopped, at once, where the loader was closed."""
        if self._event.wait(seconds) if seconds else self._event.is_set():
            raise Stopped(what)

    def waiting(self, what: str) -> Iterator[float]:
        """Seconds waited so far, again and again; with a line in the log every now and then. Raises Stopped."""
        event, begin = self._event, time.monotonic()
        line = begin + STALL
        while True:
            now = time.monotonic()
            if now > line:
                log.warning("waiting for %s since %.0f s", what, now - begin)
                line += STALL
            yield now - begin
            if event.wait(POLL):
                raise Stopped(what)
