"""A layer against the shards that it lies beside: the same units, shards and keys, and no sample that is none of theirs."""

from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from loader.format import Manifest, Marker
from loader.recipe import BASE
from precompute.errors import UsageError
from precompute.input.base import Base
from precompute.shards.store import Store
from precompute.verification.check_folder import Finding, redo


def check_beside(
    store: Store,
    manifest: Manifest,
    markers: dict[str, Marker],
    base_url: str,
    opening: Callable[[str], Store] = Store,
) -> Iterator[Finding]:
    """opening: opens the base by its URL. Raises UsageError where it is no layer, or the base cannot be read."""
    if BASE not in manifest.recipe:
        raise UsageError(f"--beside {base_url}: {store.url} is no layer; leave it out")
    for split, found in manifest.splits.items():
        base = Base(base_url, split, opening)
        cure = "name the --beside that it was made with, or make the layer again in another --output"
        if manifest.recipe["base"] != base.manifest.fingerprint:
            yield Finding(split, "", "the layer is of shards of another fingerprint", cure)
        elif found.plan.get(BASE) != base.plan["base"]:
            yield Finding(split, "", "the base has changed since the layer was made", cure)
        else:
            for stem, marker in markers.items():
                if marker.split == split:
                    yield from _check_unit(store, stem, marker, base)


def _check_unit(store: Store, stem: str, marker: Marker, base: Base) -> Iterator[Finding]:
    rows = base.rows(marker.unit)
    place = {name: number for number, name in enumerate(base.shards(marker.unit))}
    theirs = [(place[row.shard or ""], row.key, row.reject or "ok", row.caption) for row in rows]
    ours: list[tuple[int, str, str, str | None]] = []
    for number, shard in enumerate(marker.shards):
        try:
            table = pq.read_table(
                pa.BufferReader(store.read(f"{shard.name}.parquet")), columns=["key", "status", "caption"]
            )
        except (OSError, pa.ArrowException):
            return  # which is told where every file is read
        ours += [(number, row["key"], row["status"], row["caption"]) for row in table.to_pylist()]
    if [row[:2] for row in ours] != [row[:2] for row in theirs]:
        yield Finding(stem, "", "its shards have other rows than those of the base", redo(stem))
        return
    for (number, key, status, caption), (_, _, there, its) in zip(ours, theirs, strict=True):
        name = marker.shards[number].name
        if caption != its:
            yield Finding(name, key, "its caption is not that of the base", redo(stem))
        if there != "ok" and status != there:
            yield Finding(name, key, f"it is {status} here and {there} in the base", redo(stem))
