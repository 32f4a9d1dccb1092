"""What a layer costs when it is read, and how fast shards are packed.

    python benchmarks/layers.py                     # --samples 4000 --rounds 5

Reading: latents at 256 (8 KiB) out of the shards and captions of 77 x 1024 float16 (154 KiB) out of a layer beside them, against
the same fields in one tar; shards in the page cache, one process, rounds in turn, the best of each. Packing: shards and the layer
to a memory-backed folder in shards of 1,000, with and without a shuffle, by one process and by two, against `cp` of the same bytes
there, and against `cp` with their sha256 worked out beside it, which the markers hold.
"""

import argparse
import hashlib
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.shards import MEMORY
from loader import make_loader
from loader.format import MANIFEST, Field, Manifest
from loader.joined import rows_hash
from precompute import pack
from precompute.shards.markers import manifest_of
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.unit_writer import SidecarRow, UnitWriter

SHARD = 1000
LATENTS = Field("latents_256", "latents", "float16", (4, 32, 32))
CAPTION = Field("caption_latents", "caption_latents", "float16", (77, 1024))


def write(folder: Path, count: int, fields: list[Field], base: Path | None = None) -> Path:
    """Shards with some fields, or a layer of them beside a base."""
    rng, markers, units = np.random.default_rng(0), [], -(-count // SHARD)
    ready = [{f.member: rng.normal(size=f.shape).astype(np.float16) for f in fields} for _ in range(16)]
    recipe: Any = {"dataset": {"path": "made up"}}
    plan: Any = {"units": units}
    if base is not None:
        there = Manifest.from_json((base / MANIFEST).read_bytes())
        recipe = {**recipe, "base": there.fingerprint}
        plan = {**plan, "base": {"rows": rows_hash(there.splits["train"].shards)}}
    folder.mkdir()
    others = {"txt": b"a cat in a cup", "json": b"{}"} if base is None else {}
    for unit in range(units):
        names = [*(field.name for field in fields), *others]
        writer = UnitWriter(OutputFolder(folder), unit, names, SHARD, "bench")
        for number in range(unit * SHARD, min(count, (unit + 1) * SHARD)):
            writer.write(
                SidecarRow(f"{number:08d}", "a cat in a cup", 640, 480), {**ready[number % 16], **others}
            )
        markers.append(writer.commit(recipe, fields, plan, {}))
        writer.discard()
    write_file(folder / MANIFEST, manifest_of(recipe, fields, markers).to_json().encode())
    return folder


def rate_of(path: Any, seconds: float = 2.0) -> float:
    """Samples a second, after an epoch to warm up."""
    batches = make_loader(path, 256)
    for _ in batches:
        pass
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += sum(len(batch["image_latents"]) for batch in batches)
    rate = count / (time.perf_counter() - started)
    batches.close()
    return rate


def seconds_of(work: Callable[[Path], object]) -> float:
    """Time one run into an empty folder in memory."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        started = time.perf_counter()
        work(Path(folder))
        return time.perf_counter() - started


def copied_and_hashed(inputs: tuple[str, ...], out: Path) -> None:
    """What no way of packing can be faster than: each byte is written and hashed, both at once."""
    tars = [str(path) for folder in inputs for path in Path(folder).glob("*.tar")]
    with subprocess.Popen(["cp", "-r", *inputs, str(out)]) as copy:
        for tar in tars:
            with open(tar, "rb") as file:
                hashlib.file_digest(file, "sha256")
    assert not copy.returncode


def packed_by_two(inputs: tuple[str, ...], out: Path) -> None:
    """Forked, for importing takes longer than this."""
    config = pack.Config(inputs, out, samples_per_shard=SHARD)
    both = [multiprocessing.get_context("fork").Process(target=pack.run, args=(config,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert not any(process.exitcode for process in both)


def main() -> None:
    parser = argparse.ArgumentParser(description="Layers read beside shards, and packing.")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY) as scratch:
        folder = Path(scratch)
        whole = write(folder / "whole", args.samples, [LATENTS, CAPTION])
        base = write(folder / "base", args.samples, [LATENTS])
        layer = write(folder / "layer", args.samples, [CAPTION], base)
        rounds = [(rate_of(whole), rate_of((base, layer))) for _ in range(args.rounds)]
        one, beside = (max(rates) for rates in zip(*rounds, strict=True))
        print(f"one tar              {one:10,.0f} samples/s")
        print(f"a layer beside       {beside:10,.0f} samples/s  {beside / one:.0%}")
        shutil.rmtree(whole)
        size = sum(path.stat().st_size for path in (*base.glob("*.tar"), *layer.glob("*.tar"))) / 1e9
        inputs = (str(base), str(layer))
        ways: dict[str, Callable[[Path], object]] = {
            "cp": lambda out: subprocess.run(["cp", "-r", *inputs, str(out)], check=True),
            "cp, and sha256": lambda out: copied_and_hashed(inputs, out),
            "pack": lambda out: pack.run(pack.Config(inputs, out, samples_per_shard=SHARD)),
            "pack --shuffle 0": lambda out: pack.run(
                pack.Config(inputs, out, shuffle=0, samples_per_shard=SHARD)
            ),
            "pack, two processes": lambda out: packed_by_two(inputs, out),
        }
        best = {name: min(seconds_of(way) for _ in range(args.rounds)) for name, way in ways.items()}
        for name, seconds in best.items():
            print(f"{name:20} {size / seconds:10.2f} GB/s  {best['cp'] / seconds:.0%}")


if __name__ == "__main__":
    main()
