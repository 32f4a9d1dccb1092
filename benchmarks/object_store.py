"""The pipeline around an encoder that sleeps, to an object store that is far away: how long the device waits for it.

    pip install "latentmill[dev]"
    python benchmarks/object_store.py            # --latency 50 --rate 200 --images 1920

The store is moto's S3 in a process of its own: every request takes the latency (ms), and all that is uploaded shares one line (MB/s).
Samples are as large as the default format's, 388 KiB. Before it the same to a folder. At most 3 %.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.encode import Sleeping, asleep, row
from loader.format import Field
from precompute.cloud.place import open_output
from precompute.encode.image import open_image_encoder
from tests.support.faulty_store import FaultyStore

BATCH = 16


class Line:
    """A WSGI application at the end of a line of so many bytes a second, which all requests share."""

    def __init__(self, app: Any, rate: float) -> None:
        self._app, self._rate = app, rate
        self._lock, self._free = threading.Lock(), 0.0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        with self._lock:
            begin = max(self._free, time.monotonic())
            self._free = arrived = begin + int(environ.get("CONTENT_LENGTH") or 0) / self._rate
        time.sleep(max(0.0, arrived - time.monotonic()))
        return self._app(environ, start_response)


def serve(told: Any, latency: float, rate: float) -> None:
    """Say how the store is reached, and be one until the other end is closed."""
    store = FaultyStore()
    store.front.app, store.front.seconds = Line(store.front.app, rate), latency
    told.send(store.options)
    told.poll(None)


class Wide(Sleeping):
    """Makes as many bytes as SDXL's autoencoder and text encoders do."""

    def __init__(self) -> None:
        super().__init__(open_image_encoder("toy"), [], [256, 512], "moments", 0)
        self.fields.append(Field("caption_latents", "caption_latents", "float16", (77, 2048)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency", type=float, default=50.0)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--images", type=int, default=1920)
    given = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there, given.latency / 1e3, given.rate * 1e6), daemon=True)
    server.start()
    options = here.recv()
    row("to a folder", "")
    asleep(Wide(), given.images, BATCH)
    row(f"to a store, {given.latency:g} ms, {given.rate:g} MB/s", "")
    with tempfile.TemporaryDirectory() as scratch:
        destination = open_output("s3://bucket/out", "train", Path(scratch), options)
        asleep(Wide(), given.images, BATCH, destination)
    here.send(None)
    server.join()


if __name__ == "__main__":
    main()
