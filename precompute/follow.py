"""`--push-to`, `--delete-pushed`, `--max-disk`: the Hub follows the run, and the disk stays small.

One process at a time pushes, whichever holds the lease; all wait for room before they take up another unit.
"""

import contextlib
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from loader.format import FormatError
from precompute.errors import PrecomputeError, UsageError
from precompute.plan import Leases, Unit, leases_in
from precompute.push import Config, push
from precompute.shards import WORK
from precompute.target import Target

logger = logging.getLogger("precompute")

RETRY = 60.0  # seconds between tries where the Hub cannot be reached, or another process pushes
TAR = re.compile(r"(?P<unit>.+-\d{5,}?)(-\d{2,})?\.tar")


class Follower:
    """Pushes finished units from a thread while the run goes on. Raises at once where the Hub will not have them."""

    def __init__(self, config: Config, lease_timeout: float) -> None:
        self._config, self._stop = config, threading.Event()
        self._failure: Exception | None = None
        Target(config).open()
        self._leases = Leases(config.output, "pushing", [Unit(0, 0)], lease_timeout)
        self._thread = threading.Thread(target=self._follow, name="push", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the Hub has all that is finished. Raises PushError."""
        self._stop.set()
        self._thread.join()
        self._leases.close()
        if self._failure is not None:
            raise self._failure

    def abandon(self) -> None:
        """The run has failed: what is not pushed yet stays for the next one."""
        self._leases.close()

    def _follow(self) -> None:
        while True:
            stopping = self._stop.is_set()
            lease = self._leases.claim()
            if lease is not None:
                try:
                    push(self._config, self._stop)
                    return
                except (PrecomputeError, FormatError, OSError) as error:
                    if stopping:
                        self._failure = error
                        return
                    logger.warning("--push-to: %s", error)
                finally:
                    self._leases.release(lease)
            elif stopping:
                return  # the other process finishes the push
            self._stop.wait(RETRY)


@contextlib.contextmanager
def following(config: Config | None, lease_timeout: float) -> Iterator[None]:
    """A Follower while the block runs, waited for at its end; nothing without a config."""
    if config is None:
        yield
        return
    follower = Follower(config, lease_timeout)
    try:
        yield
    except BaseException:
        follower.abandon()
        raise
    follower.finish()


class Room:
    """Whether the disk has room for another unit. limit: GB of tars in the output folder, those in work included.

    largest: bytes of the largest unit finished so far, 0 before the first.
    """

    def __init__(self, output: Path, limit: float, largest: int = 0) -> None:
        self._output, self._limit, self._largest = output, limit * 1e9, largest

    def __call__(self) -> bool:
        """Raises UsageError where not even one unit fits."""
        units: Counter[str] = Counter()
        for path in self._output.glob("*.tar"):
            if match := TAR.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # pushed and deleted just now
                    units[match["unit"]] += path.stat().st_size
        self._largest = max([self._largest, *units.values()])
        if self._largest > self._limit:
            needed = f"a unit takes {self._largest / 1e9:.3g} GB"
            raise UsageError(f"--max-disk {self._limit / 1e9:g}: {needed}; give more")
        at_work = {lease["stem"] for lease in leases_in(self._output / WORK)} - {"pushing-00000", *units}
        if not self._largest:
            return not at_work  # the first unit, alone, tells how large they are
        return units.total() + (len(at_work) + 1) * self._largest <= self._limit
