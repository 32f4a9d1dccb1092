"""How fast the loader reads your own shards, here.

python -m loader.bench latents/cc12m --batch-size 256 --resolution 256 --seconds 20
"""

import argparse
import json
import sys
import time
from typing import Any

from loader.loader import make_loader
from loader.options import Paths
from loader.store_options import storage_options_of


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=sys.argv[0] if sys.argv[0].startswith("latentmill ") else "python -m loader.bench",
        description="How fast the loader reads your shards.",
    )
    parser.add_argument("shards", nargs="+", help="folders, hf://datasets/USER/REPO, https://..., s3://...")
    parser.add_argument(
        "--layers", nargs="+", default=[], help="layers beside the shards, which are one folder then"
    )
    parser.add_argument("--weights", type=float, nargs="+")
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--scale", type=float, help="of moments in tars without a manifest")
    parser.add_argument("--caption-drop-prob", type=float, default=0.0)
    parser.add_argument("--shuffle-window", type=int, default=16384)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument(
        "--store-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the client of a store, as for the verb run; repeat for several",
    )
    args = vars(parser.parse_args())
    shards, layers, seconds = args.pop("shards"), args.pop("layers"), args.pop("seconds")
    if layers and len(shards) > 1:
        parser.error(f"--layers {' '.join(layers)}: they lie beside one folder of shards; name that alone")
    if not seconds > 0:
        parser.error(f"--seconds {seconds:g}: give more than 0")
    try:
        args["storage_options"] = storage_options_of([*shards, *layers], args.pop("store_option"))
    except ValueError as error:
        raise SystemExit(str(error)) from None
    try:
        _measure([(*shards, *layers)] if layers else shards, seconds, args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _measure(shards: Paths, seconds: float, options: dict[str, Any]) -> None:
    """Read for so many seconds, and print."""
    started = time.perf_counter()
    try:
        batches = make_loader(shards, **options)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(str(error)) from None
    first: dict[str, object] | None = None
    while time.perf_counter() - started < seconds:
        for batch in batches:
            if first is None:
                first = batch
                print(f"first batch after {time.perf_counter() - started:.2f} s")
                for name, value in batch.items():
                    print(f"  {name:20s} {tuple(value.shape)} {value.dtype}")
            if time.perf_counter() - started >= seconds:
                break
    stats = batches.stats()
    batches.close()
    print(f"{stats['samples_per_second']:.0f} samples/s, {stats['bytes'] / stats['seconds'] / 1e9:.2f} GB/s")
    print(json.dumps(stats, indent=1))


if __name__ == "__main__":
    main()
