"""THE shard contract in code: member names, dtypes, markers, manifest, fingerprint.

precompute writes through this module and loader reads through it; no other file knows how a member is named or laid
out. It touches no disk. Pixels become *raw latents*, stored as mean and std (`moments_R`); only on reading do they
become *latents*, `(raw - shift) * scale`, so that nothing random and no scale is frozen to disk.

    OUT/manifest.json        Manifest: recipe, fields, shards. A pure function of the markers
    OUT/train-00000.tar      the samples, plain WebDataset
    OUT/train-00000.parquet  `sidecar_schema`: one row per source row, and where each member lies in the tar
    OUT/train-00000.json     Marker: the unit is finished. Written last
"""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from loader import border
from loader.border import FormatError as FormatError
from loader.field import DTYPES as DTYPES
from loader.field import Field as Field
from loader.field import Kind as Kind
from loader.field import parse_fields
from loader.field_names import further_kind
from loader.field_names import image_field_name as image_field_name
from loader.field_names import text_field_name as text_field_name
from loader.npy import npy_bytes as npy_bytes
from loader.npy import npy_header as npy_header
from loader.npy import npy_parts as npy_parts
from loader.npy import parse_npy as parse_npy
from loader.printable import printable
from loader.recipe import Plan, Recipe, parse_plan, parse_recipe
from loader.recipe import as_json as as_json
from loader.recipe import fingerprint as fingerprint
from loader.recipe import recipe_differences as recipe_differences
from loader.shard import SHA256 as SHA256
from loader.shard import SHARD_NAME as SHARD_NAME
from loader.shard import Shard as Shard
from loader.shard import parse_shards

FORMAT = 1
MANIFEST = "manifest.json"
NULL_CAPTION = "null_caption.npz"
KEY = re.compile(r"[A-Za-z0-9_-]+")
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
REASON = re.compile(r"[A-Za-z0-9_-]{1,100}")


class _HasShards:
    """What counts the rows of its shards."""

    shards: tuple[Shard, ...]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class Marker(_HasShards):
    """`train-00000.json`: unit 0 of split train is finished. It holds all that the manifest needs.

    plan: what the units are (dataset, number of units, limit, ...); equal in all markers of a split.
    rejected: source rows by reject reason; `rows == samples + sum(rejected.values())`.
    left_out: files of the source that belong to no row, by reason: hidden ones, a folder's README.
    caption_kinds: how many captions of each kind are embedded; empty where that is not known.
    timings: seconds by stage, images/s: the only part that differs between two runs.
    """

    split: str
    unit: int
    recipe: Recipe
    fields: tuple[Field, ...]
    plan: Plan
    shards: tuple[Shard, ...]
    rejected: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    caption_kinds: dict[str, int] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        counts = {"samples": self.samples, "rows": self.rows, "fingerprint": fingerprint(self.recipe)}
        return json.dumps({**asdict(self), **counts}, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises FormatError where the text is no marker, is of a newer format, or its counts contradict."""
        obj = _load(text, "marker")
        fields = parse_fields(obj, "marker")
        marker = cls(
            split=border.text(border.part(obj, "split", "marker"), "marker.split", SPLIT_NAME),
            unit=border.count(border.part(obj, "unit", "marker"), "marker.unit"),
            recipe=parse_recipe(border.part(obj, "recipe", "marker"), "marker.recipe"),
            fields=fields,
            plan=parse_plan(border.part(obj, "plan", "marker"), "marker.plan"),
            shards=_shards(obj, "marker", fields),
            rejected=_by_reason(obj, "rejected", "marker"),
            left_out=_by_reason({"left_out": {}, **obj}, "left_out", "marker"),
            caption_kinds=_by_reason({"caption_kinds": {}, **obj}, "caption_kinds", "marker"),
            timings=border.mapping(border.part(obj, "timings", "marker"), "marker.timings"),
            format=obj["format"],
        )
        counts = {"samples": marker.samples, "rows": marker.rows, "fingerprint": fingerprint(marker.recipe)}
        wrong = [
            f"{name} {printable(obj.get(name))!r} is not {value!r}"
            for name, value in counts.items()
            if obj.get(name) != value
        ]
        if marker.rows != marker.samples + (rejected := sum(marker.rejected.values())):
            wrong.append(f"{marker.samples} written + {rejected} rejected != {marker.rows} rows")
        if wrong:
            raise FormatError("marker contradicts itself: " + "; ".join(wrong))
        return marker


@dataclass(frozen=True)
class Split(_HasShards):
    """One split of a manifest. `units_done` of `plan["units"]` units are finished; shards in order of unit."""

    plan: Plan
    units_done: int
    shards: tuple[Shard, ...]
    rejected: dict[str, int]
    left_out: dict[str, int] = field(default_factory=dict)
    caption_kinds: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.units_done == self.plan["units"]


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: the dataset as a whole, made of nothing but its markers (and, before the first, of a plan).

    null_caption: sha256 of null_caption.npz; None where there is none, or nobody looked.
    """

    recipe: Recipe
    fields: tuple[Field, ...]
    splits: dict[str, Split]
    format: int = FORMAT
    null_caption: str | None = None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.recipe)

    def field(self, name: str) -> Field:
        for candidate in self.fields:
            if candidate.name == name:
                return candidate
        raise FormatError(f"no field {name!r} in these shards; they have {[f.name for f in self.fields]}")

    def to_json(self) -> str:
        splits = {
            name: {"samples": s.samples, "rows": s.rows, "complete": s.complete, **asdict(s)}
            for name, s in sorted(self.splits.items())
        }
        head = {"format": self.format, "fingerprint": self.fingerprint, "recipe": self.recipe}
        head |= {"null_caption": self.null_caption} if self.null_caption else {}
        return json.dumps({**head, "fields": [asdict(f) for f in self.fields], "splits": splits}, indent=1)

    @classmethod
    @border.uncollected()
    def from_json(cls, text: str | bytes) -> Self:
        """Raises FormatError where the text is no manifest, or one of a newer format."""
        obj = _load(text, "manifest")
        fields = parse_fields(obj, "manifest")
        splits = {}
        for name, split in border.mapping(border.part(obj, "splits", "manifest"), "manifest.splits").items():
            border.text(name, "manifest.splits", SPLIT_NAME)
            splits[name] = _split(split, f"split {name}", fields)
        recipe = parse_recipe(border.part(obj, "recipe", "manifest"), "manifest.recipe")
        if (null := obj.get("null_caption")) is not None:
            border.text(null, "manifest.null_caption", SHA256)
        manifest = cls(recipe, fields, splits, obj["format"], null)
        if manifest.fingerprint != (recorded := border.part(obj, "fingerprint", "manifest")):
            raise FormatError(
                f"manifest of fingerprint {printable(recorded)!r} holds a recipe of {manifest.fingerprint!r}"
            )
        return manifest


def _split(obj: Any, place: str, fields: tuple[Field, ...]) -> Split:
    obj = border.mapping(obj, place)
    plan = parse_plan(border.part(obj, "plan", place), f"{place}: plan")
    done = border.count(border.part(obj, "units_done", place), f"{place}: units_done")
    counts = (_by_reason({name: {}, **obj}, name, place) for name in ("left_out", "caption_kinds"))
    split = Split(plan, done, _shards(obj, place, fields), _by_reason(obj, "rejected", place), *counts)
    told = {"samples": split.samples, "rows": split.rows, "complete": split.complete}
    wrong = {name: value for name, value in told.items() if obj.get(name, value) != value}
    if wrong or split.rows != split.samples + sum(split.rejected.values()):
        raise FormatError(
            f"{place}: its shards do not add up to its samples, rows and rejected {wrong or ''}".rstrip()
        )
    return split


def _by_reason(obj: dict[str, Any], name: str, place: str) -> dict[str, int]:
    counts = border.mapping(border.part(obj, name, place), f"{place}: {name}")
    for reason, count in counts.items():
        border.text(reason, f"{place}: reason", REASON)
        border.count(count, f"{place}: {name} {reason}")
    return counts


def _shards(obj: dict[str, Any], place: str, fields: tuple[Field, ...]) -> tuple[Shard, ...]:
    # Of captions that were added later, a sample may have none.
    least = sum(one.known_bytes for one in fields if not further_kind(one.name))
    return parse_shards(border.part(obj, "shards", place), place, max(1, least))


def _load(text: str | bytes, what: str) -> dict[str, Any]:
    obj = border.json_object(text, what)
    if not isinstance(obj.get("format"), int):
        raise FormatError(f"not a {what}: no format number")
    if border.count(obj["format"], "format") > FORMAT:
        raise FormatError(
            f"{what} of format {obj['format']}: this latentmill reads up to {FORMAT}; update it"
        )
    return obj
