"""JSON that is as deep as data are: text that nests without end would stop Python's own reader, and whatever writes it on.

load('{"caption": "a cat"}')  ->  {"caption": "a cat"}
"""

import json
from typing import Any

__all__ = ["load"]

_DEEPEST = (
    100  # lists and objects inside each other; json gives up near 1,000, at a place that depends on who calls
)
_decode = json.JSONDecoder().decode  # as json.loads, in two thirds of its time


def load(text: str | bytes) -> Any:
    """The value. Raises ValueError for what is no JSON and for what is nested deeper than 100."""
    if isinstance(text, bytes):
        is_ascii = text.isascii() and b"\0" not in text  # which spares most objects the look for UTF-16
        text = text.decode("ascii" if is_ascii else json.detect_encoding(text), "surrogatepass")
    try:
        value = _decode(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {_DEEPEST}") from None
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {_DEEPEST}")
