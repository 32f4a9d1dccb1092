"""Whichever dataset is named: ours, or one of others."""

from precompute.input.others import OtherRecords
from precompute.input.ours import OurRecords
from precompute.input.records import Records, SourceOptions

OURS = "builders/"


def open_records(source: SourceOptions) -> Records:
    """The records of one split of a dataset. Raises UsageError naming the flag."""
    return OurRecords(source) if source.dataset.startswith(OURS) else OtherRecords(source)
