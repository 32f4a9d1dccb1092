"""Memory for batches, used again and again: the pages of a fresh array cost as much as filling it."""

import sys
import threading
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

KEPT = 32


class Buffers:
    """Tensors of 16 bits a value, typed float16. Memory is handed out again only when no tensor that shares it is left."""

    def __init__(self, pin_memory: bool) -> None:
        self._pin_memory = pin_memory
        self._lock = threading.Lock()
        self._kept: list[npt.NDArray[Any]] = []

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Contents undefined. In a worker process the tensor is in shared memory, so that sending it copies nothing."""
        size = prod(shape)
        if get_worker_info() is not None:
            storage = torch.UntypedStorage._new_shared(2 * size)  # type: ignore[no-untyped-call]
            return torch.empty(0, dtype=torch.float16).set_(storage, 0, shape)  # type: ignore[call-overload]
        # Torch keeps pinned memory itself, and knows when a copy to the device has ended.
        if self._pin_memory:
            return torch.empty(shape, dtype=torch.float16, pin_memory=True)
        with self._lock:
            kept = self._kept
            for index in range(len(kept)):
                # two references: the list's and this call's. A tensor would hold a third.
                if size <= kept[index].size <= 2 * size and sys.getrefcount(kept[index]) == 2:
                    break
            else:
                index = len(kept)
                kept.append(np.empty(size, np.float16))
            tensor = torch.from_numpy(kept[index])
            del kept[:-KEPT]
        return tensor[:size].view(shape)
