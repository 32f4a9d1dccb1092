"""Shard writing: precompute/shards/unit_writer.py against MosaicML streaming's MDSWriter and webdataset's TarWriter.

    pip install "latentmill[bench]"
    python benchmarks/shards.py                     # --samples 4000 --rounds 9

The same samples to /dev/shm: moments at 256 and 512 (16 and 64 KiB), a caption of 77 x 1024 float16 (154 KiB), its text and
its JSON. Ours includes the sha256 of each tar, the Parquet sidecar, fsync and the marker; MDSWriter hashes where it is
told to, and is spared the second that it may sleep at its end. The writers take turns, since machines are not always
equally quiet: medians of the rounds, and of their ratios. CPU is what a sample costs in processor time, of all threads.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loader import import_mosaic
from precompute.shards.output_folder import OutputFolder
from precompute.shards.unit_writer import SidecarRow, UnitWriter

FIELDS = {"moments_256": (8, 32, 32), "moments_512": (8, 64, 64), "caption_latents": (77, 1024)}
PER_SHARD = 1000
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())

Sample = tuple[str, dict[str, Any], str, dict[str, Any]]


def samples(count: int) -> Iterator[Sample]:
    """Ready in memory, as they come from the device; a few, over and over."""
    rng = np.random.default_rng(0)
    ready = [{n: rng.normal(size=s).astype(np.float16) for n, s in FIELDS.items()} for _ in range(16)]
    for index in range(count):
        facts = {"width": 640, "height": 480, "crop": [80, 0, 560, 480], "source": "00000.tar", "extras": {}}
        yield f"{index:09d}", ready[index % 16], "a photograph of a cat in a cup", facts


def ours(folder: Path, count: int) -> None:
    writer = UnitWriter(OutputFolder(folder), 0, [*FIELDS, "txt", "json"], PER_SHARD, "1-bench")
    for key, arrays, caption, facts in samples(count):
        members: dict[str, Any] = {f"{name}.npy": array for name, array in arrays.items()}
        members |= {"txt": caption.encode(), "json": json.dumps(facts).encode()}
        writer.write(SidecarRow(key, caption, 640, 480, "00000.tar"), members)
    writer.commit({}, [], {}, {})
    writer.discard()


def mds(hashes: list[str]) -> Callable[[Path, int], None]:
    writer_class = import_mosaic().MDSWriter
    sys.modules["streaming.base.format.base.writer"].sleep = lambda _: time.sleep(0.001)  # type: ignore[attr-defined]
    columns = {
        "key": "str",
        **dict.fromkeys(FIELDS, "ndarray:float16"),
        "caption": "str",
        "facts": "json",
    }
    limit = PER_SHARD * sum(int(np.prod(shape)) * 2 for shape in FIELDS.values())

    def write(folder: Path, count: int) -> None:
        with writer_class(out=str(folder), columns=columns, size_limit=limit, hashes=hashes) as writer:
            for key, arrays, caption, facts in samples(count):
                writer.write({"key": key, **arrays, "caption": caption, "facts": facts})

    return write


def webdataset(folder: Path, count: int) -> None:
    from webdataset import ShardWriter

    with ShardWriter(f"{folder}/%06d.tar", maxcount=PER_SHARD, verbose=0) as writer:
        for key, arrays, caption, facts in samples(count):
            named = {f"{name}.npy": array for name, array in arrays.items()}
            writer.write({"__key__": key, **named, "txt": caption, "json": facts})


def rate(write: Callable[[Path, int], None], count: int) -> tuple[float, float]:
    """Samples a second of the clock, and of the processor."""
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    try:
        touch_memory(folder / "touched")
        started, processor = time.perf_counter(), time.process_time()
        write(folder, count)
        return count / (time.perf_counter() - started), count / (time.process_time() - processor)
    finally:
        shutil.rmtree(folder)


def touch_memory(path: Path, gigabytes: int = 3) -> None:
    """A virtual machine gives memory that is free back to its host, and waits to get it again: not in the timed part."""
    with open(path, "wb") as file:
        for _ in range(gigabytes << 10):
            file.write(bytes(1 << 20))
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    writers = {
        "MosaicML MDSWriter": mds([]),
        "MosaicML MDSWriter, sha256": mds(["sha256"]),
        "webdataset ShardWriter": webdataset,
        "ours, sha256 and sidecar": ours,
    }
    rounds = [
        {name: rate(write, arguments.samples) for name, write in writers.items()}
        for _ in range(arguments.rounds)
    ]
    sample = sum(int(np.prod(shape)) * 2 for shape in FIELDS.values()) / 1e6
    print(f"{'writer':<28} {'MB/s':>8} {'samples/s':>10} {'ratio':>7} {'CPU, us':>8}")
    for name in writers:
        speed, per_second = (statistics.median(rates[name][i] for rates in rounds) for i in range(2))
        ratio = statistics.median(rates[name][0] / rates["MosaicML MDSWriter"][0] for rates in rounds)
        print(f"{name:<28} {speed * sample:>8.0f} {speed:>10.0f} {ratio:>6.2f}x {1e6 / per_second:>8.0f}")


if __name__ == "__main__":
    main()
