"""One function judges a row, whoever's dataset it is of: the first reason that holds, and all that is known of the row."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.core.account import REASONS
from builders.core.captions import LONGEST
from builders.core.config import ImageCaptionConfig
from builders.core.gate import judge
from builders.core.images import UndecodableImage
from builders.core.record import Record, SourceRow
from precompute.input.open_records import open_records
from precompute.input.pixels import read_picture
from precompute.input.records import SourceOptions
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import encode, jpeg

GOOD = jpeg(1, (300, 280))
BOMB = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (60000).to_bytes(4) * 2 + b"\x08\x02\0\0\0"
HEIC = b"\0\0\0\x18ftypheic" + bytes(99)
# What can be wrong with a row, in the order in which it counts.
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"reject": "unsafe"}, "unsafe"),
    ({"image": None}, "missing_image"),
    ({"captions": None}, "missing_caption"),
    ({"captions": ["x" * (LONGEST + 1)]}, "caption_too_long"),
    ({"captions": ["..."]}, "empty_caption"),
    ({"image": HEIC}, "unsupported_format"),
    ({"image": b"<html>"}, "undecodable"),
    ({"image": BOMB}, "too_large"),
    ({"image": jpeg(2, (300, 200))}, "too_small"),
    ({"image": GOOD[:2000]}, "undecodable"),
]
RULES = ImageCaptionConfig()


def row(**fault: Any) -> SourceRow:
    return SourceRow("k", GOOD, ["a &amp; b", "c"], "a.zip/k.jpg", {"n": 1})._replace(**fault)


def test_a_good_row_is_a_record_with_all_that_is_known_of_it() -> None:
    assert judge(row(), RULES, "alt") == Record(
        "k", "a & b", GOOD, "a.zip/k.jpg", {"n": 1}, ["a & b", "c"], ["alt", "alt"], 300, 280
    )
    small = judge(row(), replace(RULES, max_image_size=256), "alt")
    assert (small.width, small.height) == (274, 256) and small.image != GOOD


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_a_fault_has_its_reason(fault: dict[str, Any], reason: str) -> None:
    found = judge(row(**fault), RULES, "alt")
    assert (found.reject, found.key, found.source, found.extras) == (reason, "k", "a.zip/k.jpg", {"n": 1})
    assert reason in REASONS


@pytest.mark.parametrize("first", range(5))
def test_the_first_fault_is_the_one_that_counts(first: int) -> None:
    """Every later one stands beside it, as far as a row can have both."""
    fault, reason = FAULTS[first]
    others = {name: value for later, _ in FAULTS[:first:-1] for name, value in later.items()}
    assert judge(row(**{**others, **fault}), RULES, "alt").reject == reason


def test_a_row_without_its_image_keeps_its_caption() -> None:
    assert judge(row(image=None), RULES, "alt").captions == ["a & b", "c"]


@pytest.mark.parametrize(
    "image", [GOOD, GOOD[:2000], HEIC, b"<html>", b"", BOMB, encode(Image.new("L", (9, 9)), "GIF")]
)
def test_who_decodes_every_image_comes_to_the_same_end(image: bytes) -> None:
    rules = replace(RULES, min_image_size=1)
    later = judge(row(image=image), rules, "alt", decoded_later=True)
    reject = later.reject
    if reject is None:
        try:
            read_picture(image, [64], size=(later.width or 0, later.height or 0))
        except UndecodableImage as error:
            reject = error.reject
    assert reject == judge(row(image=image), rules, "alt").reject


def test_a_dataset_of_others_is_judged_as_ours_is(tmp_path: Path) -> None:
    images = {"a": GOOD, "b": HEIC, "c": b"<html>", "d": BOMB, "e": jpeg(3, (300, 300))}
    members = [
        (f"{k}.{end}", v)
        for k, image in images.items()
        for end, v in (("jpg", image), ("txt", b"a <b>cat</b>"))
    ]
    write_tar(tmp_path / "0.tar", members)
    options = (f"data_files={tmp_path / '0.tar'}",)
    others = open_records(
        SourceOptions("webdataset", options=options, image_column="jpg", caption_column="txt")
    )
    ours = open_records(SourceOptions("builders/webdataset", options=options))
    found = [
        [
            (r.caption, r.captions, r.width, r.height, r.reject, r.image)
            for r in records.rows(records.units[0])
        ]
        for records in (ours, others)
    ]
    assert found[0] == found[1]


def test_columns_are_read_back_as_they_were() -> None:
    record = judge(row(), RULES, "alt")
    columns = record.columns()
    assert np.array_equal(columns["image"]["bytes"], GOOD)
    assert Record.of_columns({**columns, "reject": record.reject}, GOOD, {"n": 1}) == record
