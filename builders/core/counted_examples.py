"""A builder's examples as a stream that keeps their account: one line out when it has been read to the end."""

from collections.abc import Iterator
from typing import Any

import datasets
from datasets.builder import Key
from datasets.iterable_dataset import ExamplesIterable

from builders.core.account import Account


class CountedExamples(ExamplesIterable):
    """A stream of a builder's examples that reports its account when it has been read to the end."""

    @property
    def features(self) -> datasets.Features:
        """What the examples hold as they are; a stream cast to just this (images not decoded) needs no conversion."""
        return self.generate_examples_fn.__self__._raw_features

    def __iter__(self) -> Iterator[tuple[Key, dict[str, Any]]]:
        account = Account()
        self.kwargs: dict[str, Any] = {**self.kwargs, "account": account}
        resumed = bool(
            self._state_dict and (self._state_dict["shard_idx"] or self._state_dict["shard_example_idx"])
        )
        yield from super().__iter__()
        self.generate_examples_fn.__self__._report(self.kwargs, account, resumed)

    def shuffle_data_sources(self, generator: Any) -> "CountedExamples":
        return self._counted(super().shuffle_data_sources(generator))

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> "CountedExamples":
        return self._counted(super().shard_data_sources(num_shards, index, contiguous=contiguous))

    def _counted(self, other: ExamplesIterable) -> "CountedExamples":
        return CountedExamples(other.generate_examples_fn, other.kwargs)
