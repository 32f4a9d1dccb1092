"""A store that fails when it is told to, one for each module."""

from collections.abc import Iterator

import pytest

from tests.support.faulty_store import FaultyStore


@pytest.fixture(scope="module")
def running_store() -> Iterator[FaultyStore]:
    store = FaultyStore()
    yield store
    store.close()


@pytest.fixture
def store(running_store: FaultyStore) -> Iterator[FaultyStore]:
    """Calm at the beginning of each test."""
    running_store.calm()
    yield running_store
    running_store.calm()
