"""DiffusionDB's zips and score tables with the real column types, and each kind of score that must not pass."""

import datetime
from pathlib import Path

import pyarrow
import pyarrow.parquet

from .archive import dumps, write_zip
from .photos import encode, photo, png, truncated, webp

_SCHEMA = pyarrow.schema(
    {
        "image_name": pyarrow.string(),
        "prompt": pyarrow.string(),
        "part_id": pyarrow.uint16(),
        "seed": pyarrow.uint32(),
        "step": pyarrow.uint16(),
        "cfg": pyarrow.float32(),
        "sampler": pyarrow.uint8(),
        "width": pyarrow.uint16(),
        "height": pyarrow.uint16(),
        "user_name": pyarrow.string(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
        "image_nsfw": pyarrow.float32(),
        "prompt_nsfw": pyarrow.float32(),
    }
)
# Name: image_nsfw, prompt_nsfw.
_SCORES = {
    "a": (0.1, 0.05),
    "blurred": (2.0, 0.01),
    "nan": (float("nan"), 0.01),
    "null": (None, 0.01),
    "rude": (0.1, 0.9),
    "lewd": (0.5, 0.1),
    "gone": (0.1, 0.1),  # in the table, not in the zip
    "empty": (0.1, 0.1),
    "cut": (0.1, 0.1),
    "unprompted": (0.1, 0.1),
}


def _parameters(prompt: str | None, **others: object) -> dict[str, object]:
    return {"p": prompt, "se": 38753269, "c": 12.0, "st": 50, "sa": "k_lms"} | others


def _part(suffix: str, image: bytes, other: bytes) -> tuple[list[tuple[str, bytes]], dict[str, object]]:
    names = ("a", "blurred", "nan", "null", "rude", "lewd", "unknown", "empty", "unprompted")
    images = [(f"{name}.{suffix}", image) for name in names] + [(f"cut.{suffix}", truncated(other))]
    parameters: dict[str, object] = {
        f"{name}.{suffix}": _parameters(" , " if name == "empty" else f"{name}, 4 k, ")
        for name in (*names, "cut")
        if name != "unprompted"
    }
    # Strings occur where numbers are meant.
    parameters[f"a.{suffix}"] = _parameters("geodesic landscape, 4 k, ", se="38753269", c="12", st="50")
    return images, parameters


def _table(path: Path, parts: list[int], suffix: str) -> None:
    rows = [
        {
            "image_name": f"{name}{'-' + str(part) if part != parts[0] else ''}.{suffix}",
            "prompt": "x",
            "part_id": part,
            "seed": 4294967295,
            "user_name": None if name == "a" else "deleted_account",
            "timestamp": None if name == "a" else datetime.datetime(2022, 8, 8, tzinfo=datetime.UTC),
            "image_nsfw": scores[0],
            "prompt_nsfw": scores[1],
        }
        for name, scores in reversed(_SCORES.items())  # in another order than the zip
        for part in reversed(parts)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=_SCHEMA), path)


def make(root: Path) -> None:
    images, parameters = _part("png", png(0), png(1))
    write_zip(root / "images/part-000001.zip", [*images, ("part-000001.json", dumps(parameters))])
    _table(root / "metadata.parquet", [1], "png")

    images, parameters = _part("webp", webp(0), encode(photo(1), "WEBP", lossless=True))
    write_zip(
        root / "diffusiondb-large-part-1/part-000001.zip", [("part-000001.json", dumps(parameters)), *images]
    )
    again = {name.replace(".", "-10001."): value for name, value in parameters.items()}
    members = [(name.replace(".", "-10001."), data) for name, data in images]
    # the real one was seen to hold a .json named after another part
    write_zip(
        root / "diffusiondb-large-part-2/part-010001.zip",
        [*members[:2], ("part-000001.json", dumps(again)), *members[2:]],
    )
    _table(root / "metadata-large.parquet", [1, 10_001], "webp")


def _expected(suffix: str = "") -> list[tuple[str, str]]:
    outcomes = {
        "a": "geodesic landscape, 4 k,",
        **dict.fromkeys(("blurred", "nan", "null", "rude", "lewd", "unknown"), "!unsafe"),
        "empty": "!empty_caption",
        "unprompted": "!missing_caption",
        "cut": "!undecodable",
        "gone": "!missing_image",
    }
    return [(name + suffix, outcome) for name, outcome in outcomes.items()]


EXPECTED = {"large": {"train": _expected() + _expected("-10001")}, "2m": {"train": _expected()}}
