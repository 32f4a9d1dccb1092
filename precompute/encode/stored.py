"""The precision in which values are stored, whatever they are computed in: `--store`."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from loader.recipe import Recipe
from precompute.flags.run import Store as Store

STORES: dict[Store, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Array = npt.NDArray[Any]  # float16, or the bits of bfloat16 as uint16


def store_of(recipe: Recipe) -> Store:
    """What a recipe says of it; nothing where it is float16."""
    return "bfloat16" if recipe.get("store") == "bfloat16" else "float16"


def as_array(tensor: torch.Tensor) -> Array:
    """A tensor of 16 bits a value, on the host, as the array that its member holds."""
    if tensor.dtype == torch.bfloat16:
        bits: npt.NDArray[np.uint16] = tensor.view(torch.uint16).numpy()
        return bits
    values: npt.NDArray[np.float16] = tensor.numpy()
    return values
