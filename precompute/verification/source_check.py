"""The source of shards, opened again from their recipe: its images, its captions, its rows.

What neither recipe nor plan knows, where the raw files lie on this machine, comes from `--source`, `--data-dir`, `--options`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from builders.core.images import UndecodableImage, decode_rgb
from builders.core.record import Record
from loader.format import Manifest, Marker
from loader.recipe import BASE, Recipe
from precompute.input.recorded_source import Where, open_recorded
from precompute.input.records import Records
from precompute.shards.store import Store
from precompute.verification.check_folder import Finding, redo
from precompute.verification.check_shard import check_sidecar
from precompute.verification.source_listing import LISTED, check_listing


def find_records(records: Records, wanted: dict[int, set[str]]) -> dict[str, Record]:
    """Records by key: the `wanted` keys of each unit. Reads a unit only as far as it must."""
    found = {}
    for unit, keys in wanted.items():
        left = set(keys)
        for record in records.rows(records.units[unit]) if left else ():
            if record.key in left:
                found[record.key] = record
                left.discard(record.key)
            if not left:
                break
    return found


def source_pixels(
    data: bytes | None, facts: dict[str, Any], height: int, width: int, recipe: Recipe
) -> npt.NDArray[np.uint8] | None:
    """What the encoder should have seen: (H, W, 3), by a full decode and the crop that the sample's own facts name.

    On purpose not by precompute/input/pixels.py, which this is held against. With buckets each resolution has a crop of its own,
    and `height` and `width` tell which. None where there is no readable image or no crop.
    """
    try:
        crops = [facts["crop"], *facts.get("crops", {}).values()]
        boxes = [(float(left), float(top), float(right), float(bottom)) for left, top, right, bottom in crops]
        if data is None:
            return None
        # Recipes from before there was a choice ignored colour profiles.
        image = decode_rgb(data, color_profile=recipe.get("color_profile", "ignore"))
        box = min(boxes, key=lambda b: abs((b[2] - b[0]) * height - (b[3] - b[1]) * width))
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))
    except (UndecodableImage, KeyError, ValueError, TypeError, AttributeError):
        return None


# --- every row written or rejected ------------------------------------------------------------------------------------


def check_source(
    store: Store, manifest: Manifest, markers: dict[str, Marker], where: Where
) -> Iterator[Finding]:
    """Every row of the source is in a sidecar of its unit, once, in order, with the caption it has now.

    Of a folder or tars of the user's own, what lies there is listed apart from the reader, too.
    """
    sources: set[str] = set()
    records = None
    for split in manifest.splits:
        records = open_recorded(manifest, split, where)
        for stem, marker in markers.items():
            if marker.split == split and marker.unit < len(records.units):
                ours = _rows(store, marker, redo(stem))
                sources.update(str(row["source"]) for row in ours)
                source = records.rows(records.units[marker.unit])
                theirs = [(r.key, r.reject, r.caption, list(r.captions)) for r in source]
                if marker.recipe.get("bucket_step"):  # a shard a bucket: in order within each alone
                    ours.sort(key=lambda row: str(row["key"]))
                    theirs.sort(key=lambda row: row[0])
                yield from compare_unit(stem, ours, theirs)
    if records is not None and records.source.dataset in LISTED and records.source.data_dir is not None:
        yield from check_listing(records.source.data_dir, records.source.dataset, manifest, sources)


def _rows(store: Store, marker: Marker, cure: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for shard in marker.shards:
        if f"{shard.name}.parquet" in store.files:
            data = store.read(f"{shard.name}.parquet")
            sidecar, _ = check_sidecar(shard, marker.fields, data, cure, BASE in marker.recipe)
            rows += sidecar.table.to_pylist() if sidecar else []
    return rows


def compare_unit(
    stem: str, ours: list[dict[str, Any]], theirs: list[tuple[str, str | None, str | None, list[str]]]
) -> Iterator[Finding]:
    keys, source_keys = [row["key"] for row in ours], [key for key, *_ in theirs]
    fine = True
    for key, what in _strays(keys, source_keys):
        fine = False
        yield Finding(stem, key, what, f"give the --source that the shards were made of, or {redo(stem)}")
    if fine and keys != source_keys:
        fine = False
        yield Finding(stem, "", "its rows are not in the order of the source", redo(stem))
    for row, (key, reject, caption, captions) in zip(ours, theirs, strict=True) if fine else ():
        if row["status"] == "ok" and reject is not None:
            yield Finding(stem, key, f"written, though the source rejects it ({reject})", redo(stem))
        elif row["status"] == "ok" and (
            row["caption"] != caption or row.get("captions", captions) != captions
        ):
            what = "its caption is not the one that the source has for it"
            yield Finding(stem, key, what, redo(stem))


def _strays(ours: Iterable[str], theirs: Iterable[str]) -> Iterator[tuple[str, str]]:
    mine, other = set(ours), list(theirs)
    yield from (
        (key, "a source row that is neither written nor rejected") for key in other if key not in mine
    )
    yield from ((key, "no row of the source has this key") for key in sorted(mine - set(other)))
