"""The snippets of docs/scale.md: datasets, webdataset and DuckDB read shards in a store, as they stand there."""

import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_store import FaultyStore
from tests.support.keyed_shards import FIELDS, write_shards

DOCS = Path(__file__).parents[3] / "docs" / "scale.md"


def names_of(tar: Path) -> list[str]:
    with tarfile.open(tar) as file:
        return file.getnames()


def test_the_snippets(store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import duckdb
    import webdataset

    image = [field for field in FIELDS if field.name == "moments_256"]
    folder = write_shards(tmp_path / "a", [4, 3], fields=image)
    store.upload(folder, "cc12m")
    text = DOCS.read_text(encoding="utf-8").partition("## Object stores")[2].partition("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", text, re.S)[0]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "made-up",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # the store is on this machine
    monkeypatch.setitem(webdataset.gopen_schemes, "s3", None)
    seen: dict[str, Any] = {}
    exec(code.replace("BUCKET", "bucket").replace("https://HOST", store.endpoint), seen)
    keys = list(
        dict.fromkeys(
            name.partition(".")[0] for path in sorted(folder.glob("*.tar")) for name in names_of(path)
        )
    )
    assert len(keys) == 7
    assert [row["__key__"] for row in seen["rows"]] == keys
    assert [sample["__key__"] for sample in seen["samples"]] == keys
    assert dict(seen["counts"])["ok"] == 7
    duckdb.default_connection().unregister_filesystem("s3")
