"""See how many samples a condition takes, of what, before anything trains on them.

    python precompute/choose.py latents/coco --where "width >= 512" --subset 0 0.9
    python precompute/choose.py latents/coco --keys good.csv --output kept.parquet
    python precompute/choose.py latents/coco --duplicates --output kept.parquet

The same `where=`, `keys=` and `subset=` go to `make_loader`; `kept.parquet` goes to its `keys=`.
"""

# This file is not called `select.py`: a script beside it would import that in place of Python's module.

import dataclasses
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from loader.cache import Cache, cache_folder
from loader.condition import Condition, select_samples
from loader.joined import JoinedSource, open_dataset
from loader.remote import open_files
from loader.sidecar import I64
from loader.source import ManifestSource
from loader.tar_source import TarSource
from precompute.cloud.place import check_options, store_options
from precompute.commands import parse
from precompute.errors import UsageError, one_line_errors
from precompute.flags.choose import Config as Config
from precompute.report.duplicates import without_duplicates
from precompute.shards.near_duplicates import MOST
from precompute.shards.output_folder import open_folder, write_file

PATIENCE = 60.0  # seconds
DISTANCE = 6  # bits; different photographs are 20 and more apart


def count_chosen(config: Config) -> str:
    """The table. Raises UsageError for a condition, a path or a file that cannot be."""
    distance = distance_of(config)
    folder = cache_folder()
    paths = (config.path, *config.layers)
    check_options(config.store_option, *paths)
    options = store_options(paths, config.store_option)
    try:
        path, *layers = (open_files(p, Cache(folder, None), PATIENCE, options) for p in paths)
        source = open_dataset(path, config.split, folder, layers)
        if isinstance(source, TarSource):
            raise UsageError(
                f"{config.path}: it has no manifest.json, so nothing is known of its samples but their keys"
            )
        whole = Condition(config.where, config.keys, config.subset)
        total = int(source.samples([], []).sum())
        lines = [_line("all", total, total)]
        for name, condition in _parts(whole):
            lines.append(_line(name, sum(map(len, select_samples(source, condition, folder, [], []))), total))
        chosen = select_samples(source, whole, folder, [], [])
        if config.duplicates:
            told, chosen = without_duplicates(source, chosen, distance)
            lines = [
                *told,
                *lines,
                _line(f"one of each, --distance {distance}", sum(map(len, chosen)), total),
            ]
    except (OSError, ValueError) as error:
        raise UsageError(f"{config.path}: {error}") from error
    count = sum(map(len, chosen))
    read = sum(1 for part in chosen if len(part))
    lines.append(_line("together", count, total) + f"  in {read:,} of {len(chosen):,} shards")
    if config.output is not None:
        _write(config.output, keys_of(source, chosen))
        lines.append(f"{config.output}: {count:,} keys")
    return "\n".join(lines)


def distance_of(config: Config) -> int:
    """Raises UsageError for one that cannot be."""
    if config.distance is not None and not config.duplicates:
        raise UsageError(f"--distance {config.distance}: only with --duplicates")
    distance = DISTANCE if config.distance is None else config.distance
    if not 0 <= distance <= MOST:
        raise UsageError(f"--distance {distance}: bits of 64, from 0 to {MOST}")
    return distance


def _parts(condition: Condition) -> list[tuple[str, Condition]]:
    """Each given condition alone, under its name."""
    given = {
        f.name: v for f in dataclasses.fields(condition) if (v := getattr(condition, f.name)) is not None
    }
    return [(f"{name} {value}", Condition(**{name: value})) for name, value in given.items()]


def _line(name: str, count: int, total: int) -> str:
    return f"{name:40} {count:>14,}  {count / max(total, 1):>7.2%}"


def keys_of(source: ManifestSource | JoinedSource, chosen: list[I64]) -> pa.ChunkedArray:
    """Keys of the chosen samples, in the order of the shards, out of the sidecars."""
    parts = [
        source.ok_rows(n, ["key", "status"])["key"].take(part) for n, part in enumerate(chosen) if len(part)
    ]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.string())


def _write(path: Path, keys: pa.ChunkedArray) -> None:
    open_folder("--output", path.parent)
    try:
        out = io.BytesIO()
        pq.write_table(pa.table({"key": keys}), out)
        write_file(path, out.getvalue())
    except OSError as error:
        raise UsageError(f"--output {path}: {error}") from error


def main(config: Config | None = None) -> None:
    config = config or parse("select", Config, __doc__)
    with one_line_errors():
        print(count_chosen(config))


if __name__ == "__main__":
    main()
