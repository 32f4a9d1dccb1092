"""Fetch a dataset's raw archives into a folder that `data_dir` takes.

    python -m builders.download cc12m --parts 0-22 --data-dir raw/cc12m
    python -m builders.download coco textcaps --data-dir raw   # raw/coco ...
    python -m builders.download sa1b --links links.txt --parts 20-22

A file appears under its name only when it is whole and its size and checksum,
where known, are right; until then it is NAME.part. Run the same command again
after any failure: what is whole stays, and what is not goes on at the byte
where it stopped.
"""

import argparse
import os
import sys

import datasets
from tqdm import tqdm

from builders import names
from builders.archives.sources import ArchiveBuilder
from builders.core.errors import BuilderError
from builders.core.log import visible
from builders.download.fetch import Downloader

_SKIPPED = ("demo", "folder", "webdataset")  # read what is on the machine already


def parse(arguments: list[str] | None) -> argparse.Namespace:
    started = sys.argv[0] if sys.argv[0].startswith("latentmill ") else "python -m builders.download"
    parser = argparse.ArgumentParser(
        started, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "dataset", nargs="+", choices=[name for name in names() if name not in _SKIPPED], metavar="NAME"
    )
    parser.add_argument("--name", help="config, as in load_dataset: small, 2m, karpathy, ...")
    parser.add_argument("--parts", help='which archives: "0-22" or "1,5,9"; default all')
    parser.add_argument(
        "--data-dir",
        help="folder to fetch into, default raw/NAME; of several\ndatasets, each into NAME below it",
    )
    parser.add_argument("--links", help="sa1b: Meta's list of links")
    parser.add_argument(
        "--num-threads",
        type=int,
        choices=range(1, 65),
        metavar="N",
        default=8,
        help="files at a time, 1 to 64",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 if every file is there, 1 if one is not, 130 after Ctrl-C."""
    try:
        return _fetch(parse(arguments))
    except KeyboardInterrupt:
        print("interrupted. What has arrived stays: run the same command again", file=sys.stderr)
        return 130


def _fetch(options: argparse.Namespace) -> int:
    status = 0
    for name in options.dataset:
        own = options.data_dir is not None and len(options.dataset) == 1
        folder = options.data_dir if own else os.path.join(options.data_dir or "raw", name)
        config = {key: value for key in ("parts", "links") if (value := getattr(options, key)) is not None}
        try:
            builder = datasets.load_dataset_builder(f"builders/{name}", options.name, **config)
            assert isinstance(builder, ArchiveBuilder)
            sources = builder.sources()
        except (BuilderError, ValueError) as error:
            print(visible(f"{name}: {error}"), file=sys.stderr)
            return 1
        os.makedirs(folder, exist_ok=True)
        with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=name) as bar:
            downloader = Downloader(name, folder, bar)
            downloader.fetch_all(sources, options.num_threads)
        status = _summarise(downloader) or status
    return status


def _summarise(downloader: Downloader) -> int:
    """One line for the dataset, one for each cause of failure."""
    done, kept, failed = downloader.done, downloader.kept, downloader.failed
    print(
        f"{downloader.name}: {len(done):,} fetched, {len(kept):,} there already, {len(failed):,} failed, in {downloader.folder}"
    )
    told = [message for message in failed.values() if message != "not tried"]
    for message in told[:5]:
        print(visible(f"  {message}"), file=sys.stderr)
    if len(failed) > len(told[:5]):
        print(f"  and {len(failed) - len(told[:5]):,} more", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
