"""The contract in code: what is read back is what was written, and nothing odd in a file gets further than an error."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from loader.format import (
    Field,
    FormatError,
    Manifest,
    Marker,
    Shard,
    Split,
    fingerprint,
    npy_bytes,
    parse_npy,
    recipe_differences,
)

PLAN = {"units": 1}
SHARD = Shard("train-00000", samples=2, rows=3, bytes=102400, sha256="a" * 64, parquet_sha256="b" * 64)
FIELD = Field("moments_256", "moments", "float16", (8, 32, 32), scale=(1.0, 2.0, 3.0, 4.0), shift=0.5)
MARKER = Marker("train", 0, {"vae": "toy"}, (FIELD,), PLAN, (SHARD,), {"too_small": 1})
MANIFEST = Manifest({"vae": "toy"}, (FIELD,), {"train": Split(PLAN, 1, (SHARD,), {"too_small": 1})})
ODD: list[Any] = [None, -1, 10**30, "x", [], {}, [[]], {"a": "b"}, 1.5, True]


def test_files_are_read_back_as_written() -> None:
    assert Marker.from_json(MARKER.to_json()) == MARKER
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


@pytest.mark.parametrize("kind", [Marker, Manifest])
def test_odd_content_is_a_format_error_or_harmless(kind: type[Marker] | type[Manifest]) -> None:
    def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
        yield path
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for name, inner in items:
            yield from places(inner, (*path, name))

    text = (MARKER if kind is Marker else MANIFEST).to_json()
    for path in places(json.loads(text)):
        for odd in ODD:
            content = json.loads(text)
            if not path:
                content = odd
            else:
                parent = content
                for step in path[:-1]:
                    parent = parent[step]
                parent[path[-1]] = odd
            try:
                read = kind.from_json(json.dumps(content))
                assert read.to_json()
            except FormatError:
                pass


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "train-0", "train-00000.tar", "", "-00000", "a/b-00000"]
)
def test_shard_names_are_no_paths(name: str) -> None:
    with pytest.raises(FormatError):
        Shard(name, 1, 1, 1, "", "")


@pytest.mark.parametrize("folder", ["..", "a/../b", "/etc", "a/", "a//b", "C:", "."])
def test_folders_of_shards_lie_below_the_manifest(folder: str) -> None:
    with pytest.raises(FormatError, match="folder"):
        Shard("train-00000", 1, 1, 1, "", "", folder=folder)


def test_where_a_shard_lies_is_no_part_of_what_it_is() -> None:
    moved = replace(SHARD, folder="train/0000")
    assert moved == SHARD and moved.path == "train/0000/train-00000" and SHARD.path == "train-00000"
    manifest = replace(MANIFEST, splits={"train": replace(MANIFEST.splits["train"], shards=(moved,))})
    assert Manifest.from_json(manifest.to_json()).splits["train"].shards[0].path == moved.path


WRONG = {
    "name": ["train-00000\ntrain-00007", "train-٣٣٣٣٣", "../train-00007", "t" * 200 + "-00007", "train-00003", 7, None, ["train-00007"]],
    "samples": [-1, 2**60, 4, True, 1.0, "2", None, []], "rows": [1, -1, 2**60, False, None], "bytes": [0, -1, 2**60, None],
    "sha256": ["", "a" * 63, "A" * 64, "a" * 64 + "\n", 7, None, ["a" * 64]], "parquet_sha256": ["", "g" * 64, None, {}],
    "bucket": ["x", "1x1+", "1x1\n", "1x" + "1" * 7, 7, None, []], "folder": ["..", "a/", "a\n", "a" * 201, 7, None, {}],
    "extra": [1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, wrong in WRONG.items() for value in wrong]
)
def test_one_wrong_shard_among_many_is_named(name: str, value: Any) -> None:
    listed = [{**asdict(SHARD), "name": f"train-{number:05d}"} for number in range(50)]
    content = json.loads(MANIFEST.to_json())
    content["splits"]["train"] |= {
        "shards": listed,
        "samples": 100,
        "rows": 150,
        "rejected": {"too_small": 50},
    }
    assert Manifest.from_json(json.dumps(content)).splits["train"].shards[7].path == "train-00007"
    listed[7][name] = value
    with pytest.raises(FormatError, match=r"train-00007|shard name|not a shard|two shards") as error:
        Manifest.from_json(json.dumps(content))
    assert len(str(error.value)) < 300 and str(error.value).isprintable()


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 3},
        {"rows": 2},
        {"complete": False},
        {"rejected": {}},
        {"shards": []},
        {"shards": [{**asdict(SHARD), "samples": 0}]},
    ],
)
def test_a_split_that_contradicts_its_shards_is_named(change: dict[str, Any]) -> None:
    content = json.loads(MANIFEST.to_json())
    content["splits"]["train"] |= change
    with pytest.raises(FormatError, match="split train: its shards do not add up"):
        Manifest.from_json(json.dumps(content))


@pytest.mark.parametrize("kind", ["caption_latents", "caption_pooled", "features", "latents"])
def test_a_field_without_a_number_of_channels_is_none(kind: str) -> None:
    name, shape = {"latents": ("latents_8", (None, 4, 4)), "features": ("features_x", (4, None))}.get(
        kind, (kind, (4, None))
    )
    with pytest.raises(FormatError, match=r"shape \[.*\] tells no number of channels"):
        Field.from_json({"name": name, "kind": kind, "dtype": "float16", "shape": list(shape)})


@pytest.mark.parametrize("name", ["name", "samples", "rows", "bytes", "sha256", "parquet_sha256"])
def test_a_shard_that_lacks_something_is_named(name: str) -> None:
    content = json.loads(MANIFEST.to_json())
    del content["splits"]["train"]["shards"][0][name]
    with pytest.raises(FormatError, match=f"split train: not a shard: it has no '{name}'"):
        Manifest.from_json(json.dumps(content))


def test_a_newer_format_says_so() -> None:
    with pytest.raises(FormatError, match="update it"):
        Manifest.from_json(json.dumps({**json.loads(MANIFEST.to_json()), "format": 99}))


@pytest.mark.parametrize("shape", [(), (3,), (0, 5), (8, 32, 32)])
def test_npy_is_what_numpy_writes(shape: tuple[int, ...]) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.float16).reshape(shape)
    data = npy_bytes(array)
    dtype, found, start = parse_npy(data)
    assert (dtype, found) == (array.dtype, shape)
    np.testing.assert_array_equal(np.frombuffer(data, dtype, offset=start).reshape(found), array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" + data[1:],
        lambda data: data.replace(b"<f2", b"|O8"),
        lambda data: data.replace(b"False", b"True "),
        lambda data: data[:10],
        lambda data: b"",
    ],
)
def test_damaged_npy_is_a_format_error(damage: Any) -> None:
    with pytest.raises(FormatError):
        parse_npy(damage(npy_bytes(np.zeros((2, 3), np.float16))))


def test_fingerprint_is_of_values_not_of_their_order() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_differences_name_the_innermost_value() -> None:
    old, new = (
        {"vae": {"weights": "a"}, "texts": [{"layer": -1}]},
        {"vae": {"weights": "b"}, "texts": [{"layer": -2}]},
    )
    assert recipe_differences(old, new) == [
        "texts.0.layer: -1 there, -2 here",
        "vae.weights: 'a' there, 'b' here",
    ]
