"""Which of the chosen samples show nearly the same picture, by the sidecars' perceptual hashes, and which of them to keep."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from loader.format import FormatError
from loader.joined import JoinedSource
from loader.sidecar import I64
from loader.sidecar_schema import PHASH
from loader.source import ManifestSource
from precompute.errors import UsageError
from precompute.shards.near_duplicates import near_duplicates

SHOWN, NAMED = 50, 10  # groups, and keys of each
COLUMNS = (PHASH, "width", "height", "status")


def without_duplicates(
    source: ManifestSource | JoinedSource, chosen: Sequence[I64], distance: int
) -> tuple[list[str], list[I64]]:
    """A line for each group of nearly the same picture, the one that is kept first; and the chosen samples without the others.

    Kept is the largest of a group, the first of equals. Raises UsageError where shards have no hashes, OSError or FormatError.
    """
    tables = [_facts(source, number, samples) for number, samples in enumerate(chosen) if len(samples)]
    facts = pa.concat_tables(tables) if tables else pa.table({})
    if not len(facts):
        return [], list(chosen)
    groups = near_duplicates(facts[PHASH].to_numpy(), distance)
    area = facts["width"].to_numpy().astype(np.int64) * facts["height"].to_numpy()
    # By group, and in it the largest and then the first to the front.
    order = np.lexsort((np.arange(len(groups)), -area, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    kept = np.zeros(len(groups), np.bool_)
    kept[order[starts]] = True
    ends = np.cumsum([len(samples) for samples in chosen])
    remaining = [samples[keep] for samples, keep in zip(chosen, np.split(kept, ends[:-1]), strict=True)]
    sizes = np.diff(starts, append=len(order))
    several = np.flatnonzero(sizes > 1)
    shown = several[np.argsort(order[starts[several]])][:SHOWN]
    found = [order[starts[number] : starts[number] + sizes[number]] for number in shown.tolist()]
    keys_of = functools.cache(lambda shard: source.ok_rows(shard, ["key", "status"])["key"])
    lines = [
        " ".join(_keys(keys_of, chosen, ends, part[:NAMED]))
        + (f" ... and {len(part) - NAMED:,} more" if len(part) > NAMED else "")
        for part in found
    ]
    more = [f"... and {len(several) - SHOWN:,} more groups"] if len(several) > SHOWN else []
    return [*lines, *more, f"{len(several):,} groups of nearly the same picture"], remaining


def _facts(source: ManifestSource | JoinedSource, number: int, samples: I64) -> pa.Table:
    try:
        table = source.ok_rows(number, COLUMNS).take(pa.array(samples))
    except FormatError as error:
        if PHASH not in str(error):
            raise
        table = pa.table({PHASH: pa.nulls(1, pa.uint64())})
    if table[PHASH].null_count:
        raise UsageError(
            f"--duplicates: {source.names[number]} of {source.files.url} has no perceptual hashes, for it was made before they were kept; "
            "remove the markers of such units (train-*.json) and run the command that made them again: the tars come out the same"
        )
    return table


def _keys(keys_of: Callable[[int], Any], chosen: Sequence[I64], ends: I64, places: I64) -> list[str]:
    """The keys of some of the chosen samples, by their places among all."""
    found = []
    for place in places.tolist():
        shard = int(np.searchsorted(ends, place, side="right"))
        sample = int(chosen[shard][place - (int(ends[shard]) - len(chosen[shard]))])
        found.append(str(keys_of(shard)[sample]))
    return found
