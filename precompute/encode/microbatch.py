"""Work on a batch in as few parts as the device's memory has turned out to allow."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

from precompute.errors import PrecomputeError

logger = logging.getLogger("precompute")

Result = TypeVar("Result")


class Microbatches:
    """One kind of work. what, cure: for the error where not even one input fits.

    fill_to: inputs that the work fills every part up to; None where it takes a part as it is.
    """

    def __init__(self, what: str, cure: str, fill_to: int | None = None) -> None:
        self._what, self._cure = what, cure
        self._most: int | None = None
        self.fill_to = fill_to

    def run(self, count: int, work: Callable[[slice], Result]) -> list[Result]:
        """`work` on slices of range(count). Where the memory is too small it goes on in halves, and does so from then on.

        Raises PrecomputeError where one input does not fit.
        """
        results: list[Result] = []
        start = 0
        while start < count:
            stop = min(count, start + (self.fill_to or self._most or count))
            try:
                results.append(work(slice(start, stop)))
                start = stop
                continue
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
            self._halve(self.fill_to or stop - start)  # here, where the frames that hold tensors are gone
        return results

    def _halve(self, size: int) -> None:
        if size == 1:
            raise PrecomputeError(f"{self._what} does not fit in the device's memory; {self._cure}")
        self._most = size // 2
        if self.fill_to:
            self.fill_to = self._most
        logger.warning("--batch-size: out of memory at %d; going on with %d at once", size, self._most)
        free_memory()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it is the device's memory, by whatever name, that is too small."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def free_memory() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
