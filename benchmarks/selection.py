"""What it takes to select among 4 million samples: made-up sidecars of 1,000 shards of 4,096 rows, and no tars.

    pip install "latentmill[select]"
    python benchmarks/selection.py                 # --shards 1000 --rounds 1

`where` is an expression over a column and an extra, at first and from the cache; `duplicates` is what `latentmill select PATH --duplicates`
takes beside it, over random perceptual hashes of which a hundredth are nearly those of others. Each in a process of its own, with
the most memory that it held.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.scale import memory
from loader.format import MANIFEST, Field, Manifest, Shard, Split
from loader.sidecar_schema import sidecar_schema

ROWS = 4096
WHERE = "width >= 512 and aesthetic > 5"
NEAR = 100  # of so many hashes one is nearly that of another
FIELDS = (Field("moments_256", "moments", "float16", (8, 32, 32), 0.13025),)


def write_sidecars(folder: Path, count: int) -> None:
    """Sidecars and the manifest that lists them."""
    rng, schema, shards = np.random.default_rng(0), sidecar_schema(["moments_256", "txt", "json"]), []
    hashes = rng.integers(0, 1 << 64, (count, ROWS), dtype=np.uint64)
    copies = hashes.reshape(-1)[::NEAR]
    copies[:] = rng.choice(hashes.reshape(-1), len(copies)) ^ np.uint64(1 << 40 | 1 << 7)
    for number in range(count):
        columns = {
            "key": [f"{number:05d}-{row:05d}" for row in range(ROWS)],
            "status": ["ok"] * ROWS,
            "caption": [f"a photograph of {word} things in a cup" for word in rng.integers(0, 1000, ROWS)],
            "width": rng.integers(256, 2048, ROWS),
            "height": rng.integers(256, 2048, ROWS),
            "source": [f"{number:05d}.tar"] * ROWS,
            "extras": [
                json.dumps({"aesthetic": score}) for score in rng.normal(5, 1, ROWS).round(3).tolist()
            ],
            "phash": hashes[number],
        }
        known = {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
        empty = {name: pa.nulls(ROWS, schema.field(name).type) for name in schema.names if name not in known}
        path = folder / f"train-{number:05d}.parquet"
        pq.write_table(pa.table({**known, **empty}).select(schema.names), path, compression="zstd")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(Shard(path.stem, ROWS, ROWS, 1 << 30, "0" * 64, sha256))
    split = Split({"units": count}, count, tuple(shards), {})
    (folder / MANIFEST).write_text(Manifest({"vae": "made-up"}, FIELDS, {"train": split}).to_json())  # type: ignore[typeddict-unknown-key]


def measure(folder: Path, duplicates: bool) -> dict[str, float]:
    """Seconds of a selection, and the MiB that it took at most."""
    from precompute import choose

    started, before = time.perf_counter(), memory("VmRSS")
    told = choose.count_chosen(
        choose.Config(str(folder), where=None if duplicates else WHERE, duplicates=duplicates)
    )
    print(told.splitlines()[-1], file=sys.stderr)
    return {"seconds": time.perf_counter() - started, "MiB": memory("VmHWM") - before}


def main() -> None:
    parser = argparse.ArgumentParser(description="Selection among millions of samples.")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(Path(args.one[0]), args.one[1] == "duplicates")))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "shards"
        folder.mkdir()
        write_sidecars(folder, args.shards)
        print(
            f"{args.shards * ROWS:,} samples of {args.shards:,} shards\n{'':20s}{'seconds':>10s}{'MiB':>10s}"
        )
        for turn in range(args.rounds):
            environment = {**os.environ, "LATENTMILL_CACHE": f"{scratch}/cache-{turn}"}
            for name, what in (("where", "where"), ("where, again", "where"), ("duplicates", "duplicates")):
                command = [sys.executable, __file__, "--one", str(folder), what]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                taken = json.loads(done.stdout)
                print(f"{name:20s}{taken['seconds']:10.2f}{taken['MiB']:10.0f}")


if __name__ == "__main__":
    main()
