"""The pipeline of precompute around an encoder: how much of the encoder's own speed is left, and how long it waits.

    python benchmarks/encode.py                  # --only vae, sleep, processes, memory

vae         SD's autoencoder architecture (random weights) on the CPU: images/s end to end, against bare `encode` calls on
            ready tensors. At least 95 %.
sleep       a stand-in encoder that sleeps: the share of the time that it waits for pixels. At most 3 %.
processes   decode-bound: two processes against one. At least 1.8x on two cores.
memory      peak resident memory after 1,000 and after 20,000 rows.
"""

import argparse
import functools
import io
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from builders.core.record import Record
from precompute.encode.batch_encoder import BatchEncoder, Encoded, EncoderInput
from precompute.encode.image import ImageEncoder, open_image_encoder
from precompute.input.pixels import Picture, read_picture
from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.runtime.pipeline import Pipeline
from precompute.runtime.stats import Stats
from precompute.runtime.unit_output import Output
from precompute.shards.destination import Destination
from precompute.shards.output_folder import OutputFolder

CPU = torch.device("cpu")


@functools.cache
def photographs(size: tuple[int, int]) -> list[bytes]:
    found = []
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        out = io.BytesIO()
        Image.fromarray(getattr(data, name)()).resize(size).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


class Photographs:
    """Records that cost nothing to read: a few photographs over and over."""

    def __init__(self, rows: int, per_unit: int, size: tuple[int, int]) -> None:
        self._rows, self._per_unit, self._size = rows, per_unit, size
        self.units = [Unit(i, i) for i in range(-(-rows // per_unit))]
        self.plan = {"units": len(self.units)}

    def rows(self, unit: Unit) -> Iterator[Record]:
        jpegs = photographs(self._size)
        for index in range(min(self._per_unit, self._rows - unit.index * self._per_unit)):
            yield Record(f"{unit.index:05d}-{index:05d}", "a caption", jpegs[index % len(jpegs)])


def run(
    records: Any,
    encoder: BatchEncoder,
    resolutions: list[int],
    batch: int,
    threads: int,
    destination: Destination | None = None,
) -> Stats:
    """One process's work, as precompute/run.py does it; into a folder that goes where no destination is given."""
    with tempfile.TemporaryDirectory() as scratch:
        place = destination or OutputFolder(Path(scratch))
        leases = Leases(place, records.units)

        def read(record: Record) -> Picture:
            return read_picture(record.image or b"", resolutions)

        try:
            return Pipeline(
                records, leases, encoder, Output(place, 1024, {}, records.plan, batch), read, threads,
                lambda stats: None,
            ).run()  # fmt: skip
        finally:
            leases.close()


# --- vae ---


def vae(images: int = 32, batch: int = 8, resolution: int = 128) -> None:
    """The architecture of SD's and SDXL's autoencoder, 34 million parameters in the encoder, at a size a CPU can do."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    image_encoder = ImageEncoder(model, {}, CPU, torch.float32)
    pixels = [read_picture(jpeg, [resolution]).pixels[resolution] for jpeg in photographs((640, 480))]
    ready = torch.stack(
        [torch.from_numpy(p.copy()) for p in itertools.islice(itertools.cycle(pixels), batch)]
    )
    ready = ready.permute(0, 3, 1, 2)
    encoder = BatchEncoder(image_encoder, [], [resolution], "moments", 0)

    def bare() -> tuple[float, float]:
        """Images a second of the clock, and of the processor, which other programs do not disturb."""
        clock, processor = time.perf_counter(), time.process_time()
        for _ in range(images // batch):
            image_encoder.encode(ready)
        return images / (time.perf_counter() - clock), images / (time.process_time() - processor)

    def whole() -> tuple[float, float]:
        processor = time.process_time()
        stats = run(Photographs(images, images, (640, 480)), encoder, [resolution], batch, 1)
        return stats.images / stats.seconds, stats.images / (time.process_time() - processor)

    bare(), whole()
    rates = [(bare(), whole()) for _ in range(5)]  # by turns: the machine is not always equally quiet
    for index, unit in enumerate(("images/s", "images per processor second")):
        pairs = [(alone[index], piped[index]) for alone, piped in rates]
        alone, piped = (sorted(column)[len(rates) // 2] for column in zip(*pairs, strict=True))
        ratio = sorted(b / a for a, b in pairs)[len(rates) // 2]
        row(f"bare encode calls, {unit}", f"{alone:.2f}")
        row(f"through the pipeline, {unit}", f"{piped:.2f}", f"{ratio:.1%} (bar: 95 %)")


# --- sleep ---


class Sleeping(BatchEncoder):
    """Takes a fixed time per batch, as a GPU does, without taking a core. Launching returns at once."""

    seconds = 0.2

    def launch(self, samples: Any) -> Any:
        free = max(time.monotonic(), getattr(self, "_free", 0.0)) + self.seconds
        self._free = free
        self.clock.busy += self.seconds
        return samples, free

    def collect(self, batch: Any) -> Any:
        samples, free = batch
        time.sleep(max(0.0, free - time.monotonic()))
        return [self._made(sample) for sample in samples]

    def _made(self, sample: EncoderInput) -> Encoded:
        return Encoded(
            {field.name: np.zeros([n or 1 for n in field.shape], np.float16) for field in self.fields}, {}
        )

    def keep_pace(self, batch: int, size: tuple[int, int], resolutions: list[int]) -> None:
        """Take so long that one core decodes such photographs 1.5 times as fast."""
        started = time.process_time()
        for jpeg in photographs(size) * 4:
            read_picture(jpeg, resolutions)
        self.seconds = batch * (time.process_time() - started) / 16 * 1.5


def sleep(images: int = 1920, batch: int = 16) -> None:
    encoder = Sleeping(open_image_encoder("toy"), [], [256, 512], "moments", 0)
    asleep(encoder, images, batch)


def asleep(encoder: Sleeping, images: int, batch: int, destination: Destination | None = None) -> None:
    size, resolutions = (900, 700), [256, 512]
    encoder.keep_pace(batch, size, resolutions)
    stats = run(Photographs(images, 240, size), encoder, resolutions, batch, 2, destination)
    floor = images / batch * encoder.seconds
    row("stand-in, images/s at most", f"{batch / encoder.seconds:.1f}")
    row(
        "through the pipeline, images/s",
        f"{stats.images / stats.seconds:.1f}",
        f"{floor / stats.seconds:.1%} busy",
    )
    row("device waited", f"{stats.waited:.1%}", "(bar: 3 %)")


# --- processes ---


def one_process(folder: Path, start: Any, images: int, done: Any) -> None:
    torch.set_num_threads(1)
    encoder = Sleeping(open_image_encoder("toy"), [], [256, 512], "moments", 0)
    encoder.seconds = 0.0
    photographs((2250, 1500))
    start.wait()
    run(Photographs(images, 24, (2250, 1500)), encoder, [256, 512], 8, 1, OutputFolder(folder))
    done.release()


def processes(images: int = 2400) -> None:
    """A hundred units, so that who does the last one matters as little as in a real run."""
    rates = {}
    context = multiprocessing.get_context("spawn")
    for count in (1, 2, 1, 2):
        with tempfile.TemporaryDirectory() as folder:
            start, done = context.Barrier(count + 1), context.Semaphore(0)
            running = [
                context.Process(target=one_process, args=(Path(folder), start, images, done))
                for _ in range(count)
            ]
            for process in running:
                process.start()
            start.wait()
            started = time.perf_counter()
            for _ in running:
                done.acquire()
            rates[count] = max(rates.get(count, 0.0), images / (time.perf_counter() - started))
            for process in running:
                process.join()
    row("one process, images/s", f"{rates[1]:.1f}")
    row("two processes, images/s", f"{rates[2]:.1f}", f"{rates[2] / rates[1]:.2f}x (bar: 1.8x)")


# --- memory ---


def peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory() -> None:
    encoder = BatchEncoder(open_image_encoder("toy"), [], [64], "moments", 0)
    run(Photographs(1000, 1000, (128, 96)), encoder, [64], 32, 2)
    before = peak()
    run(Photographs(20_000, 1000, (128, 96)), encoder, [64], 32, 2)
    row("peak memory after 1,000 rows, MB", f"{before:.0f}")
    row("peak memory after 20,000 rows, MB", f"{peak():.0f}", f"+{peak() - before:.0f} MB")


def row(name: str, value: str, note: str = "") -> None:
    print(f"{name:<52}{value:>10}  {note}", flush=True)


PARTS: dict[str, Callable[[], None]] = {"memory": memory, "vae": vae, "sleep": sleep, "processes": processes}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    for name in parser.parse_args().only:
        PARTS[name]()


if __name__ == "__main__":
    main()
