"""What a batch tells of its samples beside arrays: keys, captions and their kinds, sizes, any column of the sidecar or extra.

All of it is in the sidecars, so nothing of the tars is read for it; but in shards from before the crops stood there, `KEY.json` is.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loader.border import json_object
from loader.bucket import Bucket
from loader.captions import ChosenCaptions
from loader.field_names import further_name
from loader.format import Field, FormatError
from loader.order import I64
from loader.sidecar import Table, column_type, ragged
from loader.source import OpenShard

SIZES = "size_conditioning"
F32 = npt.NDArray[np.float32]


def read_extras(text: str | None) -> dict[str, Any]:
    """The extras of a row by name, those in the JSON that stood beside the image with them, as img2dataset writes its scores.

    Raises FormatError for what is no JSON object.
    """
    extras = json_object(text or "{}", "extras")
    beside = extras.get("json")
    return {**(_published(beside) if isinstance(beside, str) else {}), **extras}


def _published(text: str) -> dict[str, Any]:
    """What a publisher wrote beside an image. NaN is no value, and what is no object tells nothing."""
    try:
        return json_object(text, "json", lambda name: None)
    except FormatError:
        return {}


def columns_of(extras: Sequence[str], image: Field, several: bool, further: Sequence[str]) -> list[str]:
    """The columns of a sidecar that the extras take. several: whether samples may have several captions. further: kinds of
    captions that were added later."""
    columns = list[str]()
    for name in extras:
        if name == "caption":
            columns += ["caption", *(["captions"] if several else [])]
            columns += [further_name("captions", kind) for kind in further]
        elif name == "caption_kind":
            columns.append("caption_kinds")
        elif name == SIZES:
            columns += ["width", "height", crop_column(image), "offset_json", "size_json"]
        elif name != "key":
            columns.append(name if column_type(name) else "extras")
    return list(dict.fromkeys(columns))


def crop_column(image: Field) -> str:
    return f"crop_{resolution_of(image)}"


def resolution_of(image: Field) -> int:
    return int(image.name.removesuffix("_flipped").rpartition("_")[2])


class Extras:
    """The extras of a batch that is being read. lists: by name, of each sample; sizes (B, 6) float32, of SIZES."""

    def __init__(self, names: Sequence[str], image: Field, size: int, further: Sequence[str]) -> None:
        self._names, self._image, self._kinds = [n for n in names if n != SIZES], image, ("", *further)
        self.lists: dict[str, list[Any]] = {name: [None] * size for name in self._names}
        self.sizes: F32 | None = np.zeros((size, 6), np.float32) if SIZES in names else None

    def read(
        self,
        shard: OpenShard,
        indexes: I64,
        rows: I64,
        captions: ChosenCaptions,
        mirrored: npt.NDArray[np.bool_],
        shapes: str,
    ) -> dict[int, Exception]:
        """Rows of a shard's table to indexes of the batch; errors by index. captions: of each sample the one that was drawn.

        mirrored: whether its picture is. shapes: sizes of the shard's pictures, where it is a bucket.
        """
        errors: dict[int, Exception] = {}
        target = target_size(self._image, shapes)
        for index, row, place, number, flip in zip(
            *(part.tolist() for part in (indexes, rows, captions.of, captions.number, mirrored)), strict=True
        ):
            try:
                found = _found(shard, row, self._kinds[place], number, self._names)
                if self.sizes is not None:
                    self.sizes[index] = _sizes(shard, row, self._image, target, flip)
            except (OSError, FormatError, ValueError, KeyError, TypeError) as error:
                errors[index] = error
                continue
            for name, value in found.items():
                self.lists[name][index] = value
        return errors

    def finish(self) -> dict[str, Any]:
        sizes = {} if self.sizes is None else {SIZES: torch.from_numpy(self.sizes)}
        return {**self.lists, **sizes}


def _found(shard: OpenShard, row: int, kind: str, number: int, names: Sequence[str]) -> dict[str, Any]:
    table, extras = shard.table, None
    found: dict[str, Any] = {}
    for name in names:
        if name == "key":
            found[name] = table.key(row)
        elif name == "caption":
            found[name] = _caption(shard, row, kind, number)
        elif name == "caption_kind":
            found[name] = kind or _kind(table, row, number)
        elif column_type(name):
            found[name] = table.value(name, row) if name in table.columns else None
        else:
            extras = read_extras(table.value("extras", row)) if extras is None else extras
            found[name] = extras.get(name)
    return found


def _caption(shard: OpenShard, row: int, kind: str, number: int) -> str:
    table = shard.table
    if kind or number:
        first, texts = ragged(table, further_name("captions", kind))
        return str(texts[int(first[table.rows[row]]) + number])
    if "caption" in table.columns:
        return str(table.value("caption", row) or "")
    size, offset = int(table.size["txt"][row]), int(table.offset["txt"][row])
    return os.pread(shard.descriptor("txt"), size, offset).decode("utf-8", errors="replace")


def _kind(table: Table, row: int, number: int) -> str:
    """Empty where the sidecar does not say it."""
    first, kinds = ragged(table, "caption_kinds")
    at = int(table.rows[row])
    return str(kinds[first[at] + number]) if number < first[at + 1] - first[at] else ""


def target_size(image: Field, shapes: str) -> tuple[int, int]:
    """Height and width in pixels of the pictures that were encoded: of a bucket `1024x768` (+ those of other resolutions) its own."""
    resolution = resolution_of(image)
    sizes = Bucket.named(shapes).sizes or ((resolution, resolution),)
    width, height = min(sizes, key=lambda size: abs(size[0] * size[1] - resolution**2))
    return height, width


def _sizes(
    shard: OpenShard, row: int, image: Field, target: tuple[int, int], mirrored: bool
) -> tuple[float, ...]:
    """Original height and width, top and left of the crop, target height and width, in pixels, as SDXL takes them.

    The crop is told in the picture as it is shrunk to be cropped to the target; of a mirrored one, as cut out of the mirror image.
    """
    crop = crop_column(image)
    names = ("width", "height", crop)
    facts = {name: shard.table.value(name, row) for name in names if name in shard.table.columns}
    if None in map(facts.get, names):
        facts = _facts_in_tar(shard, row, resolution_of(image)) | {
            n: v for n, v in facts.items() if v is not None
        }
    if missing := [name for name in names if not _is_size(facts.get(name), 4 if name == crop else 0)]:
        raise FormatError(
            f"{SIZES} takes {', '.join(missing)}, which neither the sidecar nor KEY.json says as it should: leave it out of "
            "extras, or make the shards again"
        )
    (width, height), (left, top, right, bottom) = (facts["width"], facts["height"]), facts[crop]
    scale = max(target[0] / (bottom - top), target[1] / (right - left))
    beside = width - right if mirrored else left
    return height, width, round(top * scale), round(beside * scale), *target


def _is_size(value: Any, numbers: int) -> bool:
    """Whether it is a whole number, or so many: left, top, right and bottom of a picture's part."""
    if not numbers:
        return isinstance(value, int) and value >= 0
    whole = isinstance(value, list) and len(value) == numbers and all(_is_size(number, 0) for number in value)
    return whole and value[0] < value[2] and value[1] < value[3]


def _facts_in_tar(shard: OpenShard, row: int, resolution: int) -> dict[str, Any]:
    """What `KEY.json` says of a sample whose sidecar does not: width, height and crop; nothing where there is none."""
    columns = shard.table.columns
    size, offset = (
        shard.table.value(f"{what}_json", row) if f"{what}_json" in columns else None
        for what in ("size", "offset")
    )
    if size is None or offset is None:
        return {}
    facts = json_object(os.pread(shard.descriptor("json"), size, offset), "KEY.json")
    crops = facts.get("crops")
    crop = crops.get(str(resolution)) if isinstance(crops, dict) else None
    return {**facts, f"crop_{resolution}": crop or facts.get("crop")}
