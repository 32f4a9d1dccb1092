"""`--push-to`, `--delete-pushed`: the Hub follows the run. One process at a time pushes, whichever holds the lease."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from builders.archives import backoff
from loader.format import FormatError
from precompute.errors import PrecomputeError, UsageError
from precompute.hub.hub_dataset import Target
from precompute.hub.local_dataset import Finished
from precompute.hub.push_loop import Config, push
from precompute.hub.retry import Refusal
from precompute.runtime.claims import Lock
from precompute.shards.destination import Destination

logger = logging.getLogger("precompute")

RETRY = 60.0  # seconds between tries where the Hub cannot be reached, or another process pushes


class Follower:
    """Pushes finished units from a thread while the run goes on. Raises at once where the Hub will not have them."""

    def __init__(self, config: Config, output: Destination, lease_timeout: float) -> None:
        self._config, self._output, self._stop = config, output, threading.Event()
        self._failure: Exception | None = None
        self._enough = threading.Event()  # ends its waits for a store
        self._target = Target(output, config.repo, private=config.private)
        self._target.open()
        self._lock = Lock(output, "pushing", lease_timeout)
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what ended the pushing for good: a refusal, which a later try would meet again."""
        if self._failure is not None:
            raise self._failure

    def finish(self) -> None:
        """Wait until the Hub has all that is finished. Raises PushError."""
        self._stop.set()
        try:
            self._thread.join()
        finally:
            self._lock.close()
        self.check()

    def abandon(self) -> None:
        """The run has failed: what is not pushed yet stays for the next one."""
        self._enough.set()
        self._lock.close()

    def _run(self) -> None:
        try:
            with backoff.until(self._enough):
                self.follow()
        except Exception as error:  # noqa: BLE001  check and finish raise it in the main thread
            self._failure = error

    def follow(self) -> None:
        """Push, again and again, until the Hub has all. Raises what no later try can mend."""
        while True:
            stopping = self._stop.is_set()
            try:
                if self._push() or (stopping and self._target.has(Finished.read(self._output))):
                    return
            except (PrecomputeError, FormatError, OSError) as error:
                if stopping or isinstance(error, (Refusal, UsageError)):
                    raise
                logger.warning("--push-to: %s", error)
            if stopping:
                # Another process is at it; if it dies, its lease goes stale.
                if backoff.cut_short(RETRY):
                    return
            else:
                self._stop.wait(RETRY)

    def _push(self) -> bool:
        """Push all that is finished by the end of the run; False where another process is at it."""
        turn = self._lock.acquire()
        if turn is None:
            return False
        try:
            push(self._config, self._stop, self._output)
        finally:
            self._lock.release(turn)
        return True


class PushGate:
    """Lets units be claimed while the push goes well. check: raises once it has failed for good."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def passing(self) -> AbstractContextManager[bool]:
        self._check()
        return contextlib.nullcontext(True)


@contextlib.contextmanager
def following(
    config: Config | None, output: Destination, lease_timeout: float
) -> Iterator[Callable[[], None]]:
    """A Follower while the block runs, waited for at its end; nothing without a config. Gives its `check`."""
    if config is None:
        yield lambda: None
        return
    follower = Follower(config, output, lease_timeout)
    try:
        yield follower.check
    except BaseException:
        follower.abandon()
        raise
    follower.finish()
