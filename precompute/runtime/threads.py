"""Threads that all stop when one of them fails, and what they hand each other."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import Any, TypeVar

from builders.archives import backoff

Item = TypeVar("Item")
TICK = 0.1  # seconds between looks at whether another thread has failed


class Threads:
    """Threads of one piece of work. failed: set with the first failure; then nobody waits any longer, for the network either."""

    def __init__(self) -> None:
        self.failed = threading.Event()
        self._failure: BaseException | None = None
        self._ended: list[threading.Event] = []

    def start(self, work: Callable[..., None], *arguments: Any) -> None:
        ended = threading.Event()

        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:  # noqa: BLE001  handed to the main thread, which raises it
                self.fail(error)
            finally:
                ended.set()

        thread = threading.Thread(target=copy_context().run, args=(guarded,), name=work.__name__)
        thread.start()
        self._ended.append(ended)

    def fail(self, error: BaseException) -> None:
        """Stop all. The first failure is the one that counts."""
        if not self.failed.is_set():
            self._failure = error
            self.failed.set()
            backoff.give_up()

    def join(self) -> None:
        """Wait until all have ended. Thread.join, once interrupted, takes a thread that works for one that has ended (bpo-45274)."""
        for ended in self._ended:
            ended.wait()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Hand items on; ends the thread where another has failed."""
        for item in items:
            if self.failed.is_set():
                raise _Stopped
            yield item

    def put(self, channel: queue.Queue[Any], item: Any) -> None:
        """Wait for room in a bounded queue; ends the thread where another has failed."""
        while not self.failed.is_set():
            with contextlib.suppress(queue.Full):
                return channel.put(item, timeout=TICK)
        raise _Stopped

    def get(self, channel: queue.Queue[Any]) -> Any:
        while not self.failed.is_set():
            with contextlib.suppress(queue.Empty):
                return channel.get(timeout=TICK)
        raise _Stopped


class _Stopped(Exception):
    """Another thread has failed: end this one. Never the first failure, so never raised to the user."""
