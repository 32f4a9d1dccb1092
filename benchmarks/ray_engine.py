"""`--engine ray` around workers that make nothing, and around an encoder that sleeps: what dealing costs.

    python benchmarks/ray_engine.py              # --only driver, sleep

driver   two workers whose units take no time: seconds of the driver a unit. At most 10 ms.
sleep    one worker with a stand-in encoder that sleeps: the share of the time that it waits for pixels. At most 3 %.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ |= {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

from benchmarks.encode import Photographs, Sleeping
from precompute.config import Config
from precompute.encode.image import open_image_encoder
from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.runtime.ray_cluster import connected
from precompute.runtime.ray_driver import RaySession
from precompute.runtime.ray_worker import About, Worker
from precompute.runtime.session import Session
from precompute.runtime.stats import Stats
from precompute.shards.destination import Destination
from precompute.shards.manifest import ManifestKeeper
from precompute.shards.output_folder import OutputFolder

UNITS = 1000
IMAGES, PER_UNIT, BATCH, SIZE = 1920, 240, 16, (900, 700)


def run(worker: type[Worker], workers: int) -> tuple[Stats, float, float]:
    """What the workers did, and wall and CPU seconds of the driver while they were at it."""
    with tempfile.TemporaryDirectory() as folder, connected():
        config = Config(
            "builders/demo", Path(folder), vae="toy", text_encoder=("toy",), batch_size=BATCH,
            engine="ray", ray_workers=workers, num_threads=2,
        )  # fmt: skip
        destination = OutputFolder(config.output)
        session = RaySession(config, destination, worker)
        leases = Leases(destination, session.units)
        wall, cpu = time.monotonic(), time.process_time()
        stats = session.work(leases, lambda stats: None, lambda: None)
        return stats, time.monotonic() - wall, time.process_time() - cpu


class Nothing(Worker):
    """Puts an empty marker where a unit would be."""

    def open(self) -> About:
        self._over = threading.Event()
        return About(UNITS, {}, [], {"units": UNITS}, "nothing", 0)

    def work(self) -> Stats:
        self._over.wait()
        return self._stats

    def deal(self, index: int, turn: int) -> tuple[bool, Stats]:
        (self._config.output / f"train-{index:05d}.json").write_text("{}")
        return True, self._stats

    def end(self) -> None:
        self._over.set()


class Pictures(Photographs):
    """What records say of their source: no options, and no row is left out by design."""

    recipe: ClassVar[dict[str, str]] = {}

    def left_out(self, unit: Unit) -> dict[str, int]:
        return {}


class Sleeper(Worker):
    """A session whose encoder sleeps, and whose records cost nothing to read."""

    def session(self, config: Config, destination: Destination) -> Session:
        encoder = Sleeping(open_image_encoder("toy"), [], list(config.resolutions), "moments", 0)
        encoder.keep_pace(BATCH, SIZE, list(config.resolutions))
        with tempfile.TemporaryDirectory() as other:
            real = Session.open(config, OutputFolder(Path(other)))
        records = Pictures(IMAGES, PER_UNIT, SIZE)
        keeper = ManifestKeeper(destination, real.recipe, encoder.fields, records.plan)
        return dataclasses.replace(
            real,
            records=records,
            encoder=encoder,
            destination=destination,
            keeper=keeper,  # type: ignore[arg-type]
        )


def driver() -> None:
    _, wall, cpu = run(Nothing, 2)
    print(
        f"{'driver, a unit':<40}{1000 * cpu / UNITS:>8.2f} ms CPU{1000 * wall / UNITS:>8.2f} ms in all (bar: 10)"
    )


def sleep() -> None:
    stats, _, _ = run(Sleeper, 1)
    print(
        f"{'device waited':<40}{stats.waited:>8.1%} (bar: 3 %), {stats.images} images in {stats.seconds:.1f} s"
    )


PARTS: dict[str, Callable[[], None]] = {"driver": driver, "sleep": sleep}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    for part in parser.parse_args().only:
        PARTS[part]()
