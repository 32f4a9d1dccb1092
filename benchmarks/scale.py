"""The loader on metadata of a size that no test machine holds: 100,000 shards, 400 million samples, all made up.

    python benchmarks/scale.py                 # --shards 1000 100000

Prints, for each number of shards and in a process of its own: time from nothing to the places of the first batch's samples,
the same for a run resumed at 90 % of the epoch, time for the order of each batch that follows, and peak memory.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SAMPLES, BATCH = 4000, 256


def write_manifest(folder: Path, shards: int) -> None:
    from loader.format import MANIFEST, Field, Manifest, Shard, Split

    listed = tuple(
        Shard(
            f"train-{n:05d}", SAMPLES, SAMPLES, 800_000_000, hashlib.sha256(b"%d" % n).hexdigest(), "0" * 64
        )
        for n in range(shards)
    )
    fields = (Field("moments_256", "moments", "float16", (8, 32, 32), 0.13025),)
    split = Split({"units": shards}, shards, listed, {})
    (folder / MANIFEST).write_text(Manifest({"vae": "made-up"}, fields, {"train": split}).to_json())


def measure(folder: Path) -> dict[str, float]:
    from loader import LatentDataset

    before = memory("VmRSS")
    times = {}
    begin = time.perf_counter()
    dataset = LatentDataset(folder, BATCH)
    turns = dataset.sampler.turns()
    dataset.reader.order.locate(*next(turns))
    times["first batch, s"] = time.perf_counter() - begin
    state = {**dataset.state_dict(), "position": int(dataset.num_samples * 0.9) // BATCH * BATCH}
    begin = time.perf_counter()
    dataset = LatentDataset(folder, BATCH)
    dataset.load_state_dict(state)
    turns = dataset.sampler.turns()
    dataset.reader.order.locate(*next(turns))
    times["resume at 90 %, s"] = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(1000):
        dataset.reader.order.locate(*next(turns))
    times["order of a batch, ms"] = time.perf_counter() - begin
    times["memory, MiB"] = memory("VmHWM") - before
    return times


def memory(what: str) -> float:
    """MiB, of this process: resident now (VmRSS) or at most (VmHWM)."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description="The loader on metadata of any size.")
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return
    rows = {}
    for shards in args.shards:
        with tempfile.TemporaryDirectory() as folder:
            write_manifest(Path(folder), shards)
            done = subprocess.run(
                [sys.executable, __file__, "--one", folder], capture_output=True, text=True, check=True
            )
        rows[shards] = json.loads(done.stdout)
    print(f"{'':22s}" + "".join(f"{shards:>12,d} shards" for shards in rows))
    print(f"{'samples':22s}" + "".join(f"{shards * SAMPLES:>19,d}" for shards in rows))
    for name in next(iter(rows.values())):
        print(f"{name:22s}" + "".join(f"{row[name]:19.3f}" for row in rows.values()))


if __name__ == "__main__":
    main()
