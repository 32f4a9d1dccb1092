"""What every loader test uses: two small datasets, and a cache folder of its own."""

from pathlib import Path

import pytest

from tests.support.keyed_shards import write_shards


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven shards of unequal size, 100 samples; one of them is empty."""
    return write_shards(tmp_path_factory.mktemp("shards") / "a", [20, 13, 0, 17, 25, 5, 20])


@pytest.fixture(scope="session")
def more_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards, 30 samples of another dataset."""
    return write_shards(tmp_path_factory.mktemp("shards") / "b", [10, 12, 8], prefix="m")
