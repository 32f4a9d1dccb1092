"""Values of a source row as a record holds them: keys of their own, and what JSON can hold."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precompute.input.row_values import LONGEST_KEY, image_bytes, jsonable, short_hash, unit_key
from precompute.input.units import Unit


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (None, "00012-0000304"),
        ({}, "00012-0000304"),
        ({"__key__": ""}, "00012-0000304"),
        ({"__key__": "a"}, "00012-a"),
        ({"__key__": 7}, "00012-7"),
        ({"__key__": "k" * LONGEST_KEY}, f"00012-{'k' * LONGEST_KEY}"),
    ],
)
def test_a_key_is_the_rows_own_or_its_number_behind_the_units(
    values: dict[str, Any] | None, key: str
) -> None:
    assert unit_key(Unit(12, 0, start=301), 4, values) == key


@pytest.mark.parametrize("ends", ["ab", "\udcfe\udcff"])
def test_long_keys_are_cut_and_stay_apart(ends: str) -> None:
    """Also those of bytes that are no text, as a tar's names may have them."""
    one, other = (unit_key(Unit(0, 0), 1, {"__key__": "k" * 200 + end}) for end in ends)
    assert one != other and len(one) == len(other) == len("00000-") + LONGEST_KEY
    start = f"00000-{'k' * (LONGEST_KEY - 9)}-"
    assert one.startswith(start) and other.startswith(start)
    assert one == unit_key(Unit(0, 0, start=9), 5, {"__key__": "k" * 200 + ends[0]}), "it is of the key alone"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": [1, None, 2.5, "é"]}, {"a": [1, None, 2.5, "é"]}),
        ((1, 2), [1, 2]),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (datetime.datetime(2024, 2, 29, 1, 2, 3), "2024-02-29T01:02:03"),
        ([datetime.time(1, 2)], ["01:02:00"]),
        ("half \ud83d of a character", "half ? of a character"),
        ({"\udc00": 1}, {"?": 1}),
    ],
)
def test_what_json_can_hold_is_kept(value: Any, kept: Any) -> None:
    assert jsonable({"a": value}) == {"a": kept}


@pytest.mark.parametrize(
    "value", [b"x", np.zeros(3), float("nan"), [float("inf")], {"b": {1, 2}}, deep(100_000), object()]
)
def test_what_json_cannot_hold_is_left_out_alone(value: Any) -> None:
    assert jsonable({"a": 1, "b": value, "c": 2}) == {"a": 1, "c": 2}


def test_an_images_bytes_are_its_own_or_those_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"of the file")
    here, gone = str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")
    assert image_bytes({"bytes": b"own", "path": here}) == b"own"
    assert image_bytes({"bytes": b"", "path": here}) == b""
    assert image_bytes({"bytes": None, "path": here}) == b"of the file"
    for none in (None, {}, {"bytes": None, "path": None}, {"bytes": None, "path": gone}):
        assert image_bytes(none) is None


def test_a_hash_of_any_text() -> None:
    assert short_hash("a") == "ca978112ca1bbdca"
    assert len({short_hash(text) for text in ("", "a", "\udc80", "\udc81")}) == 4
