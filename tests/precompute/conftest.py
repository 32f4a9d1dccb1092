"""The demo's shards, made once for all tests by a real launch of precompute/run.py; processes that start at once."""

from pathlib import Path

import pytest

from tests.support.faulty_store import running_store, store  # noqa: F401  fixtures
from tests.support.launching import TOY, run_precompute
from tests.support.processes import start  # noqa: F401  a fixture


@pytest.fixture(scope="session")
def demo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo through one process: 20 samples at 256 and 512 in four shards. Read only."""
    output = tmp_path_factory.mktemp("demo") / "shards"
    run_precompute("builders/demo", "--output", output, *TOY, launcher=True)
    return output
