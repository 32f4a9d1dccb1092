"""Tests of stores push too."""

from tests.precompute.hub.conftest import hub  # noqa: F401  a fixture
