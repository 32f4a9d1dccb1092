"""The demo, and with it what every builder inherits: registration, the three modes, the account, the caches."""

import importlib.util
import inspect
import io
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import datasets.inspect
import datasets.load
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image

import builders
from builders.core import cache_key
from builders.core.account import REASONS
from builders.core.base import make_key
from builders.core.errors import BuilderError, MissingSourceError, NoRecordsError, UnknownBuilderError
from builders.core.images import decode_rgb

COMMON = ["key", "image", "caption", "captions", "caption_kinds", "width", "height", "source"]


def test_at_least_18_photographs_with_captions_by_hand(build: Any) -> None:
    records = build("demo")
    assert len(records) >= 18
    assert len({record["key"] for record in records}) == len(records)
    for record in records:
        assert list(record) == COMMON
        assert re.fullmatch(r"[A-Za-z0-9_-]+", record["key"])
        assert record["caption"] == record["captions"][0] and len(record["captions"]) >= 2
        assert record["caption_kinds"] == ["human"] * len(record["captions"])
        image = decode_rgb(record["image"]["bytes"])
        assert image.size == (record["width"], record["height"]) and min(image.size) >= 256
    assert {decode_rgb(record["image"]["bytes"]).mode for record in records} == {"RGB"}


def test_block_averages_of_every_photograph_are_recognisable(build: Any) -> None:
    """What the toy VAE stores; 16 dB here leaves 1 dB for float16 and rounding under the 15 dB the project promises."""
    for record in build("demo", streaming=True):
        image = decode_rgb(record["image"]["bytes"])
        scale = 256 / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (image.width - 256) // 2, (image.height - 256) // 2
        pixels = np.asarray(image.crop((left, top, left + 256, top + 256)), dtype=float)
        means = pixels.reshape(32, 8, 32, 8, 3).mean((1, 3)).repeat(8, 0).repeat(8, 1)
        assert 10 * np.log10(255**2 / np.mean((pixels - means) ** 2)) > 16, record["key"]


def test_map_streaming_and_num_proc_give_the_same_bytes(build: Any, tmp_path: Path) -> None:
    records = build("demo")
    assert build("demo", streaming=True) == records
    assert build("demo", num_proc=2, cache_dir=str(tmp_path / "two")) == records


def test_rejected_rows_come_in_source_order_with_their_reason(build: Any) -> None:
    rows = build("demo", streaming=True, keep_rejected=True)
    records = build("demo", streaming=True)
    assert [row["reject"] for row in rows if row["key"] in ("page", "text")] == ["too_small"] * 2
    assert [row["key"] for row in rows if row["reject"] is None] == [record["key"] for record in records]
    assert [row["key"] for row in rows] == sorted(row["key"] for row in rows)
    assert build("demo", keep_rejected=True) == rows


def test_shards_of_a_stream_are_the_whole_in_order() -> None:
    dataset = datasets.load_dataset("builders/demo", split="train", streaming=True).select_columns(["key"])
    assert dataset.num_shards >= 4
    parts = [
        [row["key"] for row in dataset.shard(dataset.num_shards, index)]
        for index in range(dataset.num_shards)
    ]
    assert [key for part in parts for key in part] == [row["key"] for row in dataset] and all(parts)


def test_a_stream_resumes_at_any_record() -> None:
    dataset = datasets.load_dataset("builders/demo", split="train", streaming=True).select_columns(["key"])
    keys = [row["key"] for row in dataset]
    for position in range(1, len(keys), 3):
        rows = iter(dataset)
        for _ in range(position):
            next(rows)
        again = datasets.load_dataset("builders/demo", split="train", streaming=True).select_columns(["key"])
        again.load_state_dict(dataset.state_dict())
        assert [row["key"] for row in again] == keys[position:]


def test_nodes_and_workers_share_a_stream_without_loss_or_repetition() -> None:
    dataset = datasets.load_dataset("builders/demo", split="train", streaming=True)
    dataset = dataset.cast_column("image", datasets.Image(decode=False))
    keys = sorted(row["key"] for row in dataset)
    nodes = [split_dataset_by_node(dataset, rank, 3) for rank in range(3)]
    assert sorted(row["key"] for node in nodes for row in node) == keys
    workers = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(row["key"] for row in workers) == keys
    assert sorted(row["key"] for row in dataset.shuffle(seed=1, buffer_size=5)) == keys


def test_decoded_or_not_a_stream_gives_the_same_rows() -> None:
    dataset = datasets.load_dataset("builders/demo", split="train", streaming=True, keep_rejected=True)
    raw = list(dataset.cast_column("image", datasets.Image(decode=False)))  # comes as the builder made it
    for row, other in zip(dataset, raw, strict=True):
        assert row["image"].size == Image.open(io.BytesIO(other["image"]["bytes"])).size
        assert {**row, "image": None} == {**other, "image": None} and list(row) == list(other)


@pytest.mark.parametrize("how", [{}, {"num_proc": 2}, {"streaming": True}])
def test_the_account_is_shown_at_the_end(build: Any, caplog: pytest.LogCaptureFixture, how: Any) -> None:
    with caplog.at_level(logging.WARNING, "builders"):
        build("demo", **how)
    assert caplog.messages == ["demo/default train: 22 rows, 20 records, 2 rejected (too_small 2)"]


def test_the_account_of_a_shard_is_of_that_shard(caplog: pytest.LogCaptureFixture) -> None:
    dataset = datasets.load_dataset("builders/demo", split="train", streaming=True)
    with caplog.at_level(logging.WARNING, "builders"):
        list(dataset.shard(dataset.num_shards, 0).select_columns(["key"]))
    assert caplog.messages == ["demo/default train: 6 rows, 6 records, 0 rejected"]


def test_the_account_leaves_nothing_in_the_cache(build: Any, tmp_path: Path) -> None:
    build("demo", num_proc=2)
    assert list((tmp_path / "cache").rglob("*.arrow")) and not list(
        (tmp_path / "cache").rglob("*.counts.json")
    )


@pytest.mark.parametrize("how", [{}, {"num_proc": 2}, {"streaming": True}])
def test_no_records_is_an_error_with_the_counts(build: Any, how: Any) -> None:
    with pytest.raises(
        NoRecordsError, match=r"demo/default train: 22 rows, 0 records, 22 rejected \(too_small 22\)"
    ):
        build("demo", min_image_size=5000, **how)


def test_max_image_size_shrinks_what_is_larger_and_nothing_else(build: Any) -> None:
    whole = {record["key"]: record for record in build("demo", streaming=True)}
    shrunk = {record["key"]: record for record in build("demo", streaming=True, max_image_size=300)}
    assert shrunk["chelsea"]["image"] == whole["chelsea"]["image"]
    assert (shrunk["rocket"]["width"], shrunk["rocket"]["height"]) == (450, 300)
    assert decode_rgb(shrunk["rocket"]["image"]["bytes"]).size == (450, 300)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"caption_cleaning": "heavy"}, r"caption_cleaning='heavy': choose one of none, light, deepfloyd"),
        ({"min_image_size": 0}, r"min_image_size=0: give at least 1"),
        ({"max_image_size": 100}, r"max_image_size=100: give at least min_image_size, 256"),
        ({"no_such_option": 1}, r"no_such_option"),
    ],
)
def test_a_bad_option_is_named(config: Any, message: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        datasets.load_dataset_builder("builders/demo", **config)


def test_unknown_builder_lists_the_known_ones() -> None:
    with pytest.raises(UnknownBuilderError, match=r"'builders/nope'.*Known: .*demo, .*folder") as error:
        datasets.load_dataset("builders/nope")
    assert isinstance(error.value, datasets.exceptions.DatasetNotFoundError) and isinstance(
        error.value, BuilderError
    )
    with pytest.raises(UnknownBuilderError):
        datasets.get_dataset_config_names("builders/base")


@pytest.mark.parametrize("streaming", [True, False])
def test_unknown_split_and_config_list_the_known_ones(build: Any, streaming: Any) -> None:
    with pytest.raises(ValueError, match=r"nope.*\['train'\]"):
        build("demo", split="nope", streaming=streaming)
    with pytest.raises(ValueError, match=r"small.*\['default'\]"):
        build("demo", "small", streaming=streaming)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingSourceError, match=r'pip install "latentmill\[demo\]"'):
        datasets.load_dataset_builder("builders/demo")


def test_the_demo_does_not_import_skimage() -> None:
    code = (
        "import sys, builders; list(builders.load_dataset('builders/demo', split='train', streaming=True)); "
        "sys.exit('skimage' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}).returncode
        == 0
    )


def test_registration_holds_the_functions_it_wraps_and_leaves_other_paths_alone(tmp_path: Path) -> None:
    factory = datasets.load.dataset_module_factory
    assert factory is datasets.inspect.dataset_module_factory or factory.knows_builders
    assert next(iter(inspect.signature(factory).parameters)) == "path"
    assert builders.wrap(factory) is factory
    (tmp_path / "x.json").write_text('{"a": 1}\n')
    rows = datasets.load_dataset(
        "json", data_files=str(tmp_path / "x.json"), split="train", cache_dir=str(tmp_path / "c")
    )
    assert rows[0] == {"a": 1}


def test_names_splits_and_configs() -> None:
    assert {"demo", "folder"} <= set(builders.names())
    assert datasets.get_dataset_config_names("builders/demo") == ["default"]
    assert datasets.get_dataset_split_names("builders/demo") == ["train"]
    assert all(hasattr(builders, name) for name in builders.__all__)


def test_a_change_of_code_is_a_new_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    before = datasets.load_dataset_builder("builders/demo").cache_dir
    assert datasets.load_dataset_builder("builders/demo").cache_dir == before
    monkeypatch.setattr("builders.core.base.code_hash", lambda builder: "other")
    assert datasets.load_dataset_builder("builders/demo").cache_dir != before


def test_code_is_the_whole_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(inspect.getfile(builders)).parent == cache_key.PACKAGE
    copy = tmp_path / "builders"
    shutil.copytree(cache_key.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache_key, "PACKAGE", copy)
    hashes = {cache_key.code_hash(BuilderError)}
    edited = [copy / "__init__.py", copy / "core" / "gate.py", copy / "archives" / "members.py"]
    for path in edited:
        path.write_text(path.read_text() + "# edited\n")
        hashes.add(cache_key.code_hash(BuilderError))
    assert len(hashes) == 1 + len(edited)


def test_keys_are_legal_and_stay_apart() -> None:
    names = ["a", "a.b", "a_b", "a/b", "a b", "ü", "..", "猫", "a.b.c", "A"]
    keys = [make_key(name) for name in names]
    assert len(set(keys)) == len(names) and all(re.fullmatch(r"[A-Za-z0-9_-]+", key) for key in keys)
    assert make_key("COCO_val2014_000000391895") == "COCO_val2014_000000391895"


def test_every_reason_is_explained() -> None:
    assert all(REASONS.values())
