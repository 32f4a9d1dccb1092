"""Writes the units of a packed dataset, some at a time: one thread hashes a tar, and takes longer for that than to copy it.

Where there are as many units as cores, each is copied and hashed by one thread, while what it copies lies in the cache of its core.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence

from builders.archives import backoff
from loader.bucket import Bucket
from loader.format import Field, FormatError
from loader.recipe import Plan, Recipe
from precompute.commands import command
from precompute.errors import LostLease, SourceError
from precompute.runtime.leases import Lease, Leases
from precompute.runtime.progress import default_threads
from precompute.runtime.threads import Threads
from precompute.shards.destination import Destination
from precompute.shards.manifest import ManifestKeeper
from precompute.shards.missing_ok import is_gone
from precompute.shards.packing import TEXTS, Packing
from precompute.shards.tar_writer import AtOnce
from precompute.shards.unit_writer import UnitWriter

logger = logging.getLogger("precompute")

AT_ONCE = 4  # units, where there are as many cores


class Packer:
    """output: where the units go. made_by: recipe and plan. most: samples of a tar. on_unit: is told when one is finished.
    stop_reading: ends what waits for an input."""

    def __init__(
        self,
        output: Destination,
        packing: Packing,
        fields: Sequence[Field],
        made_by: tuple[Recipe, Plan],
        most: int,
        keeper: ManifestKeeper,
        on_unit: Callable[[], None],
        stop_reading: Callable[[], None],
    ) -> None:
        self._output, self._packing, self._fields = output, packing, fields
        self._recipe, self._plan = made_by
        self._most, self._keeper, self._on_unit, self._stop_reading = most, keeper, on_unit, stop_reading
        cores = default_threads()
        self._at_once = min(AT_ONCE, cores, len(packing))
        self._hasher = AtOnce() if self._at_once == cores else None
        self._threads, self._dealing, self._telling = Threads(), threading.Lock(), threading.Lock()

    def work(self, leases: Leases) -> None:
        """Write units until all are finished, by whomever."""
        dealt = leases.all(self._threads.failed)

        def write_some() -> None:
            while True:
                with self._dealing:
                    lease = next((lease for lease in dealt if lease is not None), None)
                if lease is None:
                    return
                try:
                    self._write(lease)
                except BaseException as error:
                    self._fail(error)
                    raise
                finally:
                    leases.release(lease)

        with backoff.until(self._threads.failed):
            for _ in range(self._at_once):
                self._threads.start(write_some)
            try:
                self._threads.join()
            except BaseException as error:  # noqa: BLE001  raised again below
                self._fail(error)
                self._threads.join()
        self._threads.raise_failure()

    def _fail(self, error: BaseException) -> None:
        self._threads.fail(error)
        self._stop_reading()

    def _write(self, lease: Lease) -> None:
        """Write one unit, unless another process takes it over meanwhile, or all are to stop."""
        unit, started = lease.unit.index, time.monotonic()
        bucket = Bucket.named(self._packing.bucket(unit))
        writer = None
        try:
            lease.check()
            names = [*(field.name for field in self._fields), *TEXTS]
            writer = UnitWriter(self._output, unit, names, self._most, lease.owner)
            rows, pieces = self._packing.rows(unit, self._fields, self._at_once)
            extensions = [*(field.member for field in self._fields), *TEXTS]
            writer.copy(rows, extensions, self._threads.each(pieces), bucket, self._hasher)
            lease.check()
            timings = {"seconds": round(time.monotonic() - started, 3)}
            writer.commit(self._recipe, self._fields, self._plan, timings)
            with self._telling:
                self._keeper.keep_fresh()
                self._on_unit()
        except LostLease:
            logger.warning("unit %d: another process took over while this one was held up", unit)
        except (FormatError, KeyError) as error:
            raise SourceError(
                f"unit {unit}: an input is damaged ({error}); `{command('verify')}` names the fault of an input: mend it, and run again"
            ) from error
        except OSError as error:
            if not is_gone(error):
                raise
            with contextlib.suppress(LostLease):
                lease.check()
                raise
        finally:
            if writer is not None:
                writer.discard()
