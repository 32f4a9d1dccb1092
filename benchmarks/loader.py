"""Loaders side by side: the same 4,000 samples, one process each, shards in the page cache, one table.

    pip install "latentmill[bench]"
    python benchmarks/loader.py                    # --samples 4000 --rounds 3 --workers 0 2

A sample holds what a text-to-image run stores: a 256-pixel latent (8 KiB), a 512-pixel latent (32 KiB) and a caption of
77 x 1024 float16 (154 KiB). A batch needs the first and the last; who can only read all of it, reads all of it. Each
loader reads its own format, written from the same arrays, shuffled as its own manual advises, into batches of 256 tensors.
Runs alternate, each in a process of its own: an epoch to warm up, then epochs for some seconds; the best round counts.
"""

import argparse
import importlib.machinery
import json
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH, SHARD = 256, 1000
SECONDS, LONGEST = 2.0, 15.0  # at least, and at most of one epoch
SHAPES = {"latents_256": (4, 32, 32), "latents_512": (4, 64, 64), "caption_latents": (77, 1024)}
USED = ("latents_256", "caption_latents")
USED_BYTES = sum(2 * int(np.prod(SHAPES[name])) for name in USED)
Batches = Iterable[Any]


def sample(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {n: rng.standard_normal(s, np.float32).astype(np.float16) for n, s in SHAPES.items()}


def sample_of_tensors(number: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in sample(number).items()}


# --- each loader: write its format once, then give an iterable of batches, one epoch at a time --------------------------


def write_tars(folder: Path, count: int, captions: int = 1) -> None:
    """captions: of a sample, end to end in its member."""
    from loader.format import MANIFEST, Field, npy_bytes
    from precompute.shards.markers import manifest_of
    from precompute.shards.output_folder import OutputFolder, write_file
    from precompute.shards.unit_writer import SidecarRow, UnitWriter

    kinds = {"latents_256": "latents", "latents_512": "latents", "caption_latents": "caption_latents"}
    fields = [
        Field(name, kinds[name], "float16", shape, captions=captions if name == "caption_latents" else 1)  # type: ignore[arg-type]
        for name, shape in SHAPES.items()
    ]
    tokens = {"caption_tokens": [SHAPES["caption_latents"][0]] * captions}
    markers, units = [], -(-count // SHARD)
    for unit in range(units):
        writer = UnitWriter(OutputFolder(folder), unit, list(SHAPES), SHARD, "bench")
        for number in range(unit * SHARD, min(count, (unit + 1) * SHARD)):
            arrays = sample(number)
            arrays["caption_latents"] = np.tile(arrays["caption_latents"], (captions, 1))
            row = SidecarRow(f"{number:08d}", columns=tokens)
            writer.write(row, {f"{n}.npy": npy_bytes(a) for n, a in arrays.items()})
        markers.append(writer.commit({}, fields, {"units": units}, {}))
        writer.discard()
    write_file(folder / MANIFEST, manifest_of({}, fields, markers).to_json().encode())


def ours(folder: Path, workers: int) -> Batches:
    from loader import make_loader

    return make_loader(folder / "tar", BATCH, resolution=256, num_workers=workers)


def write_five(folder: Path, count: int) -> None:
    write_tars(folder, count, captions=5)


def of_five(folder: Path, workers: int) -> Batches:
    """One of five captions, drawn."""
    from loader import make_loader

    return make_loader(folder / "five", BATCH, resolution=256, num_workers=workers, captions="random")


def webdataset(folder: Path, workers: int) -> Batches:
    return webdataset_of(sorted(map(str, (folder / "tar").glob("*.tar"))), workers)


def webdataset_of(urls: list[str], workers: int) -> Batches:
    import webdataset as wds

    options = {"shardshuffle": len(urls), "seed": 0, "empty_check": False}
    used = [f".{name}.npy" for name in USED]
    stream = wds.WebDataset(urls, select_files=lambda name: name.endswith(tuple(used)), **options)
    stream = stream.shuffle(1000).decode()
    stream = stream.to_tuple(*(f"{name}.npy" for name in USED)).batched(BATCH, partial=False)
    return wds.WebLoader(
        stream.map(lambda b: [torch.from_numpy(a) for a in b]), batch_size=None, num_workers=workers
    )


def write_mds(folder: Path, count: int) -> None:
    mosaic = import_mosaic()
    columns = {n: f"ndarray:float16:{','.join(map(str, s))}" for n, s in SHAPES.items()}
    with mosaic.MDSWriter(out=str(folder), columns=columns) as writer:
        for number in range(count):
            writer.write(sample(number))


def mosaicml(folder: Path, workers: int) -> Batches:
    dataset = import_mosaic().StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    return torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)


def import_mosaic() -> Any:
    """MosaicML's package imports torchvision, for classes nobody uses here: an empty one will do."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module: Any = types.ModuleType(f"torchvision{name}")
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            module.__path__, module.to_tensor = [], None
            module.VisionDataset = module.CIFAR10 = object
            sys.modules[module.__name__] = module
    import streaming

    return streaming


def write_litdata(folder: Path, count: int) -> None:
    import litdata

    inputs = list(range(count))
    litdata.optimize(sample_of_tensors, inputs, output_dir=str(folder), chunk_bytes="64MB", num_workers=1)


def litdata(folder: Path, workers: int) -> Batches:
    import litdata

    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, drop_last=True)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)


def datasets(folder: Path, workers: int) -> Batches:
    from datasets import load_dataset

    files = sorted(map(str, (folder / "tar").glob("*.tar")))
    stream = load_dataset("webdataset", data_files=files, split="train", streaming=True).shuffle(
        0, buffer_size=1000
    )
    stream = stream.select_columns([f"{name}.npy" for name in USED]).with_format("torch")
    return torch.utils.data.DataLoader(stream, batch_size=BATCH, num_workers=workers, drop_last=True)


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "tar": write_tars,
    "five": write_five,
    "mds": write_mds,
    "litdata": write_litdata,
}
LOADERS: dict[str, tuple[str, Callable[[Path, int], Batches]]] = {
    "latentmill": ("tar", ours),
    "latentmill, of five": ("five", of_five),
    "webdataset": ("tar", webdataset),
    "mosaicml-streaming": ("mds", mosaicml),
    "litdata": ("litdata", litdata),
    "datasets": ("tar", datasets),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(name: str, folder: Path, workers: int, count: int) -> dict[str, float]:
    """Runs in a process of its own. cpu: seconds per GB that batches hold. first: seconds from nothing to the first batch."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    run = memcpy(count) if name == "memcpy" else LOADERS[name][1](folder, workers)
    consume(run, 0)
    first = time.perf_counter() - started
    consume(run, time.perf_counter() + LONGEST)
    before, begin, seen = cpu_seconds(), time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS:
        seen += consume(run, begin + LONGEST)
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - before
    return {"rate": seen / seconds, "cpu": cpu / (seen * USED_BYTES / 1e9), "first": first}


def cpu_seconds() -> float:
    """Time of the CPU that this process and its threads had; workers come and go, and are not in it."""
    return sum(psutil.Process().cpu_times()[:2])


def consume(batches: Batches, deadline: float) -> int:
    """An epoch, or what the time allows: look at each batch as a training step would, and count its samples."""
    seen = 0
    for batch in batches:
        tensors = list(batch.values()) if isinstance(batch, dict) else batch
        latents = next(t for t in tensors if t.ndim == 4 and t.shape[-1] == 32)
        assert latents.shape[1:] == SHAPES["latents_256"], latents.shape
        seen += len(latents)
        if time.perf_counter() > deadline:
            break
    return seen


class memcpy:
    """The bound: as many bytes, from one place in memory to another."""

    def __init__(self, count: int) -> None:
        self.source = np.ones((count, USED_BYTES), np.uint8)
        self.target = np.ones((BATCH, USED_BYTES), np.uint8)

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        latents = torch.empty(BATCH, *SHAPES["latents_256"])
        for start in range(0, len(self.source) - BATCH + 1, BATCH):
            np.copyto(self.target, self.source[start : start + BATCH])
            yield [latents]


def main() -> None:
    parser = argparse.ArgumentParser(description="Loaders side by side.")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--folder", type=Path, help="keep the data there; default: a temporary folder")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # measure one loader here
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.folder, args.workers[0], args.samples)))
        return
    args.loaders = dict.fromkeys(["latentmill", *args.loaders])
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for kind in {LOADERS[name][0]: None for name in args.loaders}:
            if not (folder / kind).exists():
                print(f"writing {args.samples} samples as {kind}", file=sys.stderr)
                try:
                    WRITERS[kind](folder / kind, args.samples)
                except ImportError as error:
                    print(f'without {kind}: {error}; pip install "latentmill[bench]"', file=sys.stderr)
                    args.loaders = [name for name in args.loaders if LOADERS[name][0] != kind]
        for workers in args.workers:
            print_table(args, folder, workers)


def print_table(args: argparse.Namespace, folder: Path, workers: int) -> None:
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for name in ("memcpy", *args.loaders):
            options = ["--one", name, "--folder", folder, "--workers", workers, "--samples", args.samples]
            done = subprocess.run(
                [sys.executable, __file__, *map(str, options)], capture_output=True, text=True
            )
            if done.returncode:
                print(f"{name} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            results.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{workers} workers, best of {args.rounds}\n")
    print(
        f"{'loader':20s} {'samples/s':>10s} {'GB/s':>7s} {'CPU s/GB':>9s} {'first, s':>9s} {'ours is':>8s} {'of memcpy':>10s}"
    )
    best = {name: max(runs, key=lambda run: run["rate"]) for name, runs in results.items()}
    for name, run in sorted(best.items(), key=lambda item: -item[1]["rate"]):
        ratio, share = best["latentmill"]["rate"] / run["rate"], run["rate"] / best["memcpy"]["rate"]
        cpu = "" if workers else f"{run['cpu']:.2f}"
        first = min(run["first"] for run in results[name])
        line = f"{name:20s} {run['rate']:10.0f} {run['rate'] * USED_BYTES / 1e9:7.2f} {cpu:>9s} {first:9.2f}"
        print(f"{line} {ratio:7.2f}x {100 * share:9.1f}%")


if __name__ == "__main__":
    main()
