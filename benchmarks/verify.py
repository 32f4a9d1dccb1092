"""verify.py against the disk: how fast every byte is checked, and how fast the same bytes can merely be read.

    python benchmarks/verify.py /tmp/verify-bench --gigabytes 4

The last column is what one core does in a second of its own time: it holds on a machine that is busy with other things too.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before benchmarks/, which has a loader.py too
from loader.format import MANIFEST, Field, npy_bytes
from precompute import verify
from precompute.shards.markers import manifest_of
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.unit_writer import SidecarRow, UnitWriter

# What SDXL's VAE and the paper's text encoder give: 16 + 64 + 154 KiB.
FIELDS = (
    Field("moments_256", "moments", "float16", (8, 32, 32), 0.13025, 0.0),
    Field("moments_512", "moments", "float16", (8, 64, 64), 0.13025, 0.0),
    Field("caption_latents", "caption_latents", "float16", (77, 1024)),
)
SAMPLES = 2048  # of a shard


@dataclass(frozen=True)
class Config:
    folder: tyro.conf.Positional[Path]
    """Where to put the shards; on the disk to measure."""

    gigabytes: float = 4.0
    """How much to write."""

    keep: bool = False
    """Leave the shards there."""


def write(folder: Path, gigabytes: float) -> int:
    """Shards of noise; their size in bytes."""
    random = np.random.default_rng(0)
    arrays = {f.name: np.abs(random.normal(size=f.shape)).astype(np.float16) for f in FIELDS}  # type: ignore[arg-type]
    files = {f"{name}.npy": npy_bytes(array) for name, array in arrays.items()} | {"json": b"{}"}
    units = max(1, round(gigabytes * 1e9 / (SAMPLES * sum(len(data) + 512 for data in files.values()))))
    markers = []
    for unit in range(units):
        writer = UnitWriter(OutputFolder(folder), unit, [*arrays, "txt", "json"], SAMPLES, "bench")
        for i in range(SAMPLES):
            row = SidecarRow(f"{unit:05d}-{i:06d}", f"caption {i}")
            writer.write(row, {**files, "txt": f"caption {i}".encode()})
        markers.append(writer.commit({"dataset": {}}, FIELDS, {"units": units}, {}))
        writer.discard()
    manifest = manifest_of({"dataset": {}}, FIELDS, markers)
    write_file(folder / MANIFEST, manifest.to_json().encode())
    return sum(path.stat().st_size for path in folder.glob("*.tar"))


def forget(folder: Path) -> None:
    """Drop the files from the page cache, so that the disk is measured and not the memory."""
    for path in folder.iterdir():
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path, use: Callable[[bytes], object] = lambda block: None) -> None:
    with open(path, "rb", buffering=0) as file:
        while block := file.read(4 << 20):
            use(block)


def each(function: Callable[[Path], object], folder: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(function, sorted(folder.glob("*.tar"))))


def check(folder: Path) -> None:
    config = verify.Config(str(folder))
    assert not verify.verify(config).findings


def timed(job: Callable[[], object]) -> tuple[float, float]:
    """Seconds that passed, and seconds that all cores together were busy."""
    passed, busy = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - passed, time.process_time() - busy


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    config.folder.mkdir(parents=True)
    try:
        size = write(config.folder, config.gigabytes)
        jobs: dict[str, Callable[[], object]] = {
            "read alone": lambda: each(read, config.folder),
            "read and sha256": lambda: each(lambda path: read(path, hashlib.sha256().update), config.folder),
            "verify.py": lambda: check(config.folder),
        }
        print(
            f"{size / 1e9:.2f} GB, {os.cpu_count()} cores\n{'':<18}{'disk':>12}{'page cache':>14}{'a core':>14}"
        )
        for name, job in jobs.items():
            forget(config.folder)
            cold = timed(job)[0]
            warm, core = timed(job)
            cells = (f"{size / 1e9 / seconds:>7.2f} GB/s  " for seconds in (cold, warm, core))
            print(f"{name:<17}{''.join(cells)}", flush=True)
    finally:
        if not config.keep:
            shutil.rmtree(config.folder)


if __name__ == "__main__":
    main()
