"""What a dataset's own columns hold of a fact: a width that is no number, or a seed beyond its column, would end a whole build.

fit({"width": "12", "url": ["x"]}, {"width": Value("int32"), "url": Value("string")})  ->  {"width": 12, "url": None}
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from builders.core.captions import whole

__all__ = ["fit"]


def fit(facts: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, Any]:
    """The facts as columns of strings and numbers hold them, None where they do not; others as they are."""
    return {name: _fitting(value, features.get(name)) for name, value in facts.items()}


def _fitting(value: Any, feature: Any) -> Any:
    if isinstance(feature, datasets.List):
        return [_fitting(item, feature.feature) for item in value] if isinstance(value, list) else None
    if value is None or not isinstance(feature, datasets.Value):
        return value
    if feature.dtype == "string":
        return (
            whole(value) if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
        )
    if feature.dtype.startswith(("int", "uint", "float")):
        return _number(value, feature.dtype)
    return value


def _number(value: Any, dtype: str) -> int | float | None:
    """Read a text too, for numbers are strings here and there."""
    kind, least, most = _limits(dtype)
    try:
        number = kind(value)
        return number if least <= number <= most or not math.isfinite(number) else None
    except (ValueError, TypeError, OverflowError):
        return None


@functools.cache
def _limits(dtype: str) -> tuple[type[int] | type[float], int | float, int | float]:
    """The kind and limits as Python's own numbers: numpy's take 5 µs to find, and what is compared with them is cast to their size."""
    kind, limits = (float, np.finfo(dtype)) if dtype.startswith("float") else (int, np.iinfo(dtype))
    return kind, kind(limits.min), kind(limits.max)
