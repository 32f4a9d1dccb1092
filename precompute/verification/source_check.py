"""The source of shards, opened again from their recipe: its images, its captions, its rows.

What neither recipe nor plan knows, where the raw files lie on this machine, comes from `--source`, `--data-dir`, `--options`.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from builders.core.images import UndecodableImage, decode_rgb
from loader.format import Manifest, Marker
from loader.printable import printable
from loader.recipe import Recipe
from precompute.errors import UsageError
from precompute.input.open_records import OURS, open_records
from precompute.input.records import Record, Records, Source
from precompute.shards.store import Store
from precompute.verification.check_folder import Finding, redo
from precompute.verification.check_shard import read_sidecar
from precompute.verification.source_listing import LISTED, check_listing

FOREIGN = ("image_column", "caption_column", "caption_cleaning")
PLAIN_OPTION = re.compile(r'\w+=("[\w,+ -]*"|[\d.eE+-]+|true|false|null)')
NO_OPTION = {"path", "name", "version", "options", *FOREIGN}


@dataclass(frozen=True)
class Where:
    """What only the user knows of a source. dataset: None for the one that the recipe names."""

    dataset: str | None = None
    data_dir: Path | None = None
    options: tuple[str, ...] = ()

    @property
    def is_named(self) -> bool:
        """Whether the user says where it is, so that not to find it is an error."""
        return self.dataset is not None or self.data_dir is not None or bool(self.options)


def open_source(manifest: Manifest, split: str, where: Where) -> Records:
    """The records that a split was made of, in the same units. Raises UsageError where they are not at hand."""
    recipe, plan = manifest.recipe["dataset"], manifest.splits[split].plan
    name = where.dataset or recipe["path"]
    columns: dict[str, Any] = {}
    options = recipe.get("options", [])
    if name.startswith(OURS):
        given = {k: v for k, v in recipe.items() if k not in NO_OPTION} | {"parts": plan.get("parts")}
        options = [f"{k}={json.dumps(v)}" for k, v in given.items() if v is not None]
        columns = {"caption_cleaning": recipe.get("caption_cleaning")}
    else:
        columns = {column: recipe[column] for column in FOREIGN if column in recipe}
    if not where.is_named:
        _refuse_what_only_the_recipe_names(name, options)
    records = open_records(
        Source(
            dataset=name,
            name=recipe.get("name"),
            split=split,
            data_dir=where.data_dir,
            options=(*options, *where.options),
            prepare=bool(plan.get("prepared")),
            limit=plan.get("limit"),
            samples_per_shard=plan.get("samples_per_shard", 4096),
            **columns,
        )
    )
    if len(records.units) != plan["units"]:
        raise UsageError(
            f"--source {name}: it has {len(records.units)} units, the shards were made of {plan['units']}; "
            "give --data-dir and --options as the run had them"
        )
    return records


def _refuse_what_only_the_recipe_names(name: str, options: Sequence[str]) -> None:
    """The recipe may be a stranger's: what it names on this machine or in this network is not opened because it says so.

    Our builders are published archives, and their options may be numbers and plain words, but no path and no address.
    """
    if not name.startswith(OURS):
        raise UsageError(
            f"--source: the shards' recipe names {printable(name)}; give that yourself to have it opened"
        )
    for option in options:
        if not PLAIN_OPTION.fullmatch(option):
            raise UsageError(
                f"--options: the shards' recipe says {printable(option)}; give that yourself to have it opened"
            )


def find_records(records: Records, wanted: dict[int, set[str]]) -> dict[str, Record]:
    """Records by key: the `wanted` keys of each unit. Reads a unit only as far as it must."""
    found = {}
    for unit, keys in wanted.items():
        left = set(keys)
        for record in records.rows(records.units[unit]) if left else ():
            if record.row.key in left:
                found[record.row.key] = record
                left.discard(record.row.key)
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
        records = open_source(manifest, split, where)
        for stem, marker in markers.items():
            if marker.split == split and marker.unit < len(records.units):
                ours = _rows(store, marker, redo(stem))
                sources.update(str(row["source"]) for row in ours)
                source = records.rows(records.units[marker.unit])
                theirs = [(r.row.key, r.reject, r.row.caption, list(r.row.captions)) for r in source]
                if marker.recipe.get("bucket_step"):  # a shard a bucket: in order within each alone
                    ours.sort(key=lambda row: str(row["key"]))
                    theirs.sort(key=lambda row: row[0])
                yield from _compare(stem, ours, theirs)
    if records is not None and records.source.dataset in LISTED and records.source.data_dir is not None:
        yield from check_listing(records.source.data_dir, records.source.dataset, manifest, sources)


def _rows(store: Store, marker: Marker, cure: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for shard in marker.shards:
        if f"{shard.name}.parquet" in store.files:
            data = store.read(f"{shard.name}.parquet")
            sidecar, _ = read_sidecar(shard, marker.fields, data, cure)
            rows += sidecar.table.to_pylist() if sidecar else []
    return rows


def _compare(
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
