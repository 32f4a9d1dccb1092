"""Time as the scheduler of a process lives it: waits and threads too, so that a simulation can have its own."""

import contextvars
import threading
import time
from collections.abc import Callable
from typing import Protocol

TICK = 0.1  # seconds between looks at several events


class Joined(Protocol):
    """Work under way."""

    def join(self) -> None:
        """Return once it has ended."""
        ...


class Clock:
    """The clock of this machine, which no step of the time of day moves."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def wait(self, seconds: float, *events: threading.Event) -> None:
        """Wait until the time is over, or one of the events is set."""
        until = self.now() + seconds
        first, *others = events
        while not any(event.is_set() for event in others) and (left := until - self.now()) > 0:
            if first.wait(min(left, TICK) if others else left):
                return

    def start(self, work: Callable[[], None], name: str) -> Joined:
        """Begin work beside the caller's, in a copy of its context: what stops its waits stops those of the work."""
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True)
        thread.start()
        return thread


SYSTEM = Clock()
