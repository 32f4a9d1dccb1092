"""Raw tars and what a plain run makes of them, once for all tests of stores; they push too."""

from pathlib import Path

import pytest

from precompute import run
from tests.precompute.cloud.test_store_runs import config, write_raw
from tests.precompute.hub.conftest import hub  # noqa: F401  a fixture


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raw(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, raw: Path) -> Path:
    """Its output, in a folder. Read only."""
    output = tmp_path_factory.mktemp("plain")
    run.run(config(output, raw))
    return output
