"""Batches of a loader, held against others."""

from collections.abc import Iterable
from typing import Any

import torch

from loader import make_loader


def same(one: Any, other: Any) -> bool:
    """Whether batches are equal to the last bit, the order of their names aside."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]
        for name, value in one.items()
    )


def all_same(some: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether they are as many, and each is as its like. Raises ValueError where they are not as many."""
    return all(same(one, other) for one, other in zip(some, others, strict=True))


def epoch_of(path: Any, batch_size: int, **options: Any) -> list[dict[str, Any]]:
    """An epoch of a loader of its own, tensors as lists."""
    batches = make_loader(path, batch_size, num_threads=1, **options)
    try:
        return [
            {name: value if isinstance(value, list) else value.tolist() for name, value in batch.items()}
            for batch in batches
        ]
    finally:
        batches.close()
