"""Shared by the builders' tests: the raw generators on the path, a cache of its own, and records as plain dicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

import builders  # noqa: F401  registers the names

Build = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """build(name, split=..., streaming=..., num_proc=..., **config): the records, images as {"bytes", "path"}."""

    def run(
        name: str, config: str | None = None, *, streaming: bool = False, split: str = "train", **kwargs: Any
    ) -> Any:
        kwargs.setdefault("cache_dir", str(tmp_path / "cache"))
        dataset = datasets.load_dataset(
            f"builders/{name}", config, split=split, streaming=streaming, **kwargs
        )
        return list(dataset.cast_column("image", datasets.Image(decode=False)))

    return run
