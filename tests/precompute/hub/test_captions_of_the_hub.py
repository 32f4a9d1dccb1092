"""Captions from elsewhere that lie on the Hub: fetched once, by its own client, whatever reads them."""

from pathlib import Path
from typing import Any

import pytest

import builders
from builders.core.errors import ConfigError
from tests.support.loopback_hub import Blob, LoopbackHub, Repo

REPO = "owner/recaptions"


def records(file: str, cache: Path, **options: Any) -> dict[str, list[str]]:
    files = {"llava": f"hf://datasets/{file}"}
    rows = builders.load_dataset(
        "builders/demo", split="train", captions_from=files, cache_dir=str(cache), **options
    )
    return {row["key"]: row["caption_kinds"] for row in rows.remove_columns("image")}


def test_a_file_of_the_hub_is_joined_and_fetched_once(hub: LoopbackHub, tmp_path: Path) -> None:
    table = Blob(b'{"key": "coffee", "caption": "espresso"}\n', False)
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit("main", {"data/re.jsonl": table}, "first")
    found = records(f"{REPO}/data/re.jsonl", tmp_path / "builds", streaming=True)
    assert found["coffee"] == ["llava", "human", "human"] and found["coins"] == ["human", "human"]
    asked = len([path for method, path in hub.requests if method == "GET" and "re.jsonl" in path])
    assert records(f"{REPO}/data/re.jsonl", tmp_path / "builds") == found
    assert asked == len([path for method, path in hub.requests if method == "GET" and "re.jsonl" in path]) > 0


@pytest.mark.parametrize("file", [f"{REPO}/other.jsonl", "owner/nobody/re.jsonl"])
def test_what_is_not_there_is_one_line(hub: LoopbackHub, tmp_path: Path, file: str) -> None:
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit("main", {"README.md": Blob(b"x", False)}, "first")
    with pytest.raises(ConfigError) as refused:
        records(file, tmp_path, streaming=True)
    told = str(refused.value)
    assert told.startswith(f"captions_from: hf://datasets/{file}: cannot be fetched: ") and "\n" not in told
