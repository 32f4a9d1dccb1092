"""What tests of every room use."""

from hypothesis import HealthCheck, settings

from tests.support.waiting import clock, waits  # noqa: F401  fixtures

# The same examples at every run, no time limit, no database of examples: no test fails by chance.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("suite")
