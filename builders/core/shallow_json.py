"""JSON that is as deep as data are: text that nests without end would stop Python's own reader, and whatever writes it on.

load('{"caption": "a cat"}')  ->  {"caption": "a cat"}
"""

import json
from typing import Any

__all__ = ["load"]

_DEEPEST = (
    100  # lists and objects inside each other; json gives up near 1,000, at a place that depends on who calls
)


def load(text: str | bytes) -> Any:
    """The value. Raises ValueError for what is no JSON and for what is nested deeper than 100."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {_DEEPEST}") from None
    openings = (
        text.count("[") + text.count("{") if isinstance(text, str) else text.count(b"[") + text.count(b"{")
    )
    if openings > _DEEPEST:
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
