"""What tests of every room use."""

from tests.support.waiting import clock  # noqa: F401  a fixture
