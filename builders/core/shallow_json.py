"""JSON that is as deep as data are: text that nests without end would stop Python's own reader, and whatever writes it on.

load('{"caption": "a cat"}')  ->  {"caption": "a cat"}
"""

import json
from typing import Any

__all__ = ["load"]

_DEEPEST = (
    100  # lists and objects inside each other; json gives up near 1,000, at a place that depends on who calls
)
# As json.loads, in half its time: that looks for white space by patterns.
_decode = json.JSONDecoder().raw_decode
_NESTS = {list, dict}
_SPACE = " \t\n\r"


def load(text: str | bytes) -> Any:
    """The value. Raises ValueError for what is no JSON and for what is nested deeper than 100."""
    if isinstance(text, bytes):
        is_ascii = text.isascii() and b"\0" not in text  # which spares most objects the look for UTF-16
        text = text.decode("ascii" if is_ascii else json.detect_encoding(text), "surrogatepass")
    text = text.strip(_SPACE)
    try:
        value, end = _decode(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {_DEEPEST}") from None
    if end < len(text):
        raise ValueError(f"extra data behind the value: {text[end : end + 60]!r}")
    if text.count("[") + text.count("{") > _DEEPEST:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in _NESTS
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {_DEEPEST}")
