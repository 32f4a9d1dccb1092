"""One suite for every dataset: the same raw tree, whichever way it is read, gives the expected outcome of each source row.

A new dataset needs a module in tests/support/raw with `make(root)` and EXPECTED, its name in DATASETS, and where its captions come from in
KINDS. EXPECTED holds, for each config and split, the (key, outcome) of every row in source order: its caption, or `!` and the reason of its
rejection.
"""

import dataclasses
import importlib
import io
import logging
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image, ImageOps

import builders
from builders.archives.sources import SplitSources
from builders.core.account import REASONS
from tests.support.raw.server import serve

DATASETS = ["coco", "cc12m", "diffusiondb", "textcaps", "sa1b", "journeydb", "webdataset"]
RAW = {name: importlib.import_module(f"tests.support.raw.{name}") for name in DATASETS}
CASES = [(name, config) for name in DATASETS for config in RAW[name].EXPECTED]
SPLITS = [(name, config, split) for name, config in CASES for split in RAW[name].EXPECTED[config]]

KINDS = {
    "coco": {"human"},
    "textcaps": {"human"},
    "cc12m": {"alt"},
    "diffusiondb": {"prompt"},
    "journeydb": {"prompt", "gpt"},
    "sa1b": {"llava"},
    "webdataset": {"caption"},
}
COMMON = {
    "key": datasets.Value("string"),
    "image": datasets.Image(mode="RGB"),
    "caption": datasets.Value("string"),
    "captions": datasets.List(datasets.Value("string")),
    "caption_kinds": datasets.List(datasets.Value("string")),
    "width": datasets.Value("int32"),
    "height": datasets.Value("int32"),
    "source": datasets.Value("string"),
}


def options(name: Any, root: Any) -> Any:
    """The config that the dataset needs beside data_dir."""
    return RAW[name].options(root) if hasattr(RAW[name], "options") else {}


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The raw tree of each dataset, made once."""
    made = {}

    def root(name: Any) -> Any:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            RAW[name].make(made[name])
        return made[name]

    return root


@pytest.fixture
def load(roots: Any, tmp_path: Path) -> Any:
    """load(name, config, split, ...): the rows, from data_dir unless it is given as None."""

    def run(name: Any, config: Any, split: Any, cache: Any = "cache", **kwargs: Any) -> Any:
        kwargs = {"data_dir": str(roots(name)), **options(name, roots(name)), **kwargs}
        dataset = datasets.load_dataset(
            f"builders/{name}", config, split=split, cache_dir=str(tmp_path / cache), **kwargs
        )
        return list(dataset.cast_column("image", datasets.Image(decode=False)))

    return run


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zips of a handful of members are offered as several ranges."""
    monkeypatch.setattr("builders.archives.sources.ROWS_PER_SHARD", 2)


def test_every_registered_dataset_is_here() -> None:
    assert set(builders.names()) - {"demo", "folder"} == set(DATASETS)


@pytest.mark.parametrize(("name", "config", "split"), SPLITS)
def test_every_source_row_has_its_outcome(name: Any, config: Any, split: Any, load: Any) -> None:
    rows = load(name, config, split, streaming=True, keep_rejected=True)
    outcomes = [(row["key"], f"!{row['reject']}" if row["reject"] else row["caption"]) for row in rows]
    assert outcomes == RAW[name].EXPECTED[config][split]
    assert {row["reject"] for row in rows} <= {None, *REASONS}


@pytest.mark.parametrize(("name", "config", "split"), SPLITS)
def test_every_way_gives_the_same_records(
    name: Any, config: Any, split: Any, load: Any, small_ranges: Any
) -> None:
    records = load(name, config, split, streaming=True)
    kept = load(name, config, split, streaming=True, keep_rejected=True)
    assert records == [
        {k: v for k, v in row.items() if k not in ("reject", "error")}
        for row in kept
        if row["reject"] is None
    ]
    assert load(name, config, split) == records
    assert load(name, config, split) == records, "from the cache"
    assert load(name, config, split, cache="two", num_proc=2) == records


@pytest.mark.parametrize(("name", "config", "split"), SPLITS)
def test_records_keep_the_contract(name: Any, config: Any, split: Any, load: Any, roots: Any) -> None:
    records = load(name, config, split, streaming=True)
    builder = datasets.load_dataset_builder(
        f"builders/{name}", config, data_dir=str(roots(name)), **options(name, roots(name))
    )
    assert dict(builder.info.features) == COMMON | builder.EXTRAS
    assert records and len({record["key"] for record in records}) == len(records)
    for record in records:
        assert set(record) == set(builder.info.features)
        assert re.fullmatch(r"[A-Za-z0-9_-]+", record["key"])
        assert record["captions"][0] == record["caption"] and all(record["captions"])
        assert len(record["caption_kinds"]) == len(record["captions"])
        assert set(record["caption_kinds"]) <= KINDS[name]
        assert record["image"]["path"] is None
        seen = ImageOps.exif_transpose(Image.open(io.BytesIO(record["image"]["bytes"])))
        assert seen.size == (record["width"], record["height"])
        assert record["source"]


@pytest.mark.parametrize("name", DATASETS)
def test_keys_stay_apart_across_splits(name: Any, load: Any) -> None:
    for config, splits in RAW[name].EXPECTED.items():
        keys = [row["key"] for split in splits for row in load(name, config, split, streaming=True)]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("name", "config"), CASES)
def test_config_and_split_names(name: Any, config: Any, roots: Any) -> None:
    needed = {"data_dir": str(roots(name)), **options(name, roots(name))}
    assert config in datasets.get_dataset_config_names(f"builders/{name}")
    assert datasets.get_dataset_split_names(f"builders/{name}", config, **needed) == list(
        RAW[name].EXPECTED[config]
    )


@pytest.mark.parametrize(("name", "config", "split"), [case for case in SPLITS if case[0] != "webdataset"])
def test_downloaded_and_streamed_over_http_it_is_the_same(
    name: Any,
    config: Any,
    split: Any,
    load: Any,
    roots: Any,
    monkeypatch: pytest.MonkeyPatch,
    small_ranges: Any,
) -> None:
    expected = load(name, config, split, streaming=True)
    builder = getattr(importlib.import_module(f"builders.{name}"), name.capitalize())
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # which refuses loopback too
    with serve(roots(name)) as server:
        declared = builder._sources

        def served(self: Any) -> Any:
            def here(source: Any) -> Any:
                return dataclasses.replace(
                    source, url=f"{server.url}/{source.path}", members=min(source.members, 7)
                )

            return {
                split: SplitSources(
                    [here(source) for source in archives if (roots(name) / source.path).is_file()],
                    {key: here(table) for key, table in tables.items()},
                )
                for split, (archives, tables) in declared(self).items()
            }

        monkeypatch.setattr(builder, "_sources", served)
        assert load(name, config, split, data_dir=None, streaming=True) == expected
        assert load(name, config, split, data_dir=None) == expected


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_data_dir_is_an_error_that_lists_the_archives(name: Any, load: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(builders.BuilderError, match=r"data_dir=.*Looked for .+\.(zip|tar|tgz|json)"):
        load(name, None, "train", data_dir=str(tmp_path / "empty"), streaming=True)


@pytest.mark.parametrize("how", [{}, {"num_proc": 2}, {"streaming": True}])
@pytest.mark.parametrize("name", DATASETS)
def test_the_account_adds_up(name: Any, how: Any, load: Any, caplog: pytest.LogCaptureFixture) -> None:
    config, splits = next(iter(RAW[name].EXPECTED.items()))
    split, outcomes = next(iter(splits.items()))
    with caplog.at_level(logging.WARNING, "builders"):
        load(name, config, split, **how)
    (line,) = [message for message in caplog.messages if f" {split}: " in message]
    rejected = [outcome for _, outcome in outcomes if outcome.startswith("!")]
    assert f"{len(outcomes)} rows, {len(outcomes) - len(rejected)} records, {len(rejected)} rejected" in line
    for outcome in set(rejected):
        assert f"{outcome[1:]} {rejected.count(outcome)}" in line
