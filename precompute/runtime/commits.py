"""Units on their way to their destination while the next are encoded: one after another, or a few at once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from builders.archives import backoff


class Commits:
    """Runs what makes a unit visible. behind: how many may be under way when `add` returns; 0: it is done by then.

    on_error is told of a fault as soon as there is one.
    """

    def __init__(self, behind: int, on_error: Callable[[BaseException], None]) -> None:
        self._on_error = on_error
        self._free = threading.Semaphore(behind) if behind else None
        self._pool = ThreadPoolExecutor(
            max(1, behind), thread_name_prefix="commit", initializer=backoff.follow()
        )

    def add(self, job: Callable[[], None]) -> None:
        """Start it, once there is room."""
        if self._free is None:
            return job()
        self._free.acquire()
        self._pool.submit(self._run, job, self._free)
        return None

    def close(self) -> None:
        """Wait until all are done: what is on its way when a run stops still arrives."""
        self._pool.shutdown(wait=True)

    def _run(self, job: Callable[[], None], free: threading.Semaphore) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001  handed on to who waits
            self._on_error(error)
        finally:
            free.release()
