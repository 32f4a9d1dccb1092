"""Where JSON from outside becomes values: each is of its type and within its bounds, or a FormatError names the place.

What a manifest, marker or server says may be a stranger's. Nothing is made as large as they claim before the bytes are there.
"""

import contextlib
import gc
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, compress
from typing import Any

from loader.printable import printable

DEPTH = 64  # of nesting: more than any recipe, and less than any recursion
CONTAINERS = {dict, list}
LONGEST = 1 << 53  # of a count: beyond it JSON's numbers are not exact


class FormatError(ValueError):
    """A manifest, marker, sidecar or member that breaks the shard contract, or is of a newer one."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No collection of garbage within: where a million values come to be that all stay, to look for some takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def json_object(text: str | bytes, what: str, constant: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """A JSON object of bounded depth. Raises FormatError, also for NaN, which is no JSON, unless `constant` says what it is."""
    try:
        obj = json.loads(text, parse_constant=constant or _refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a {what}: {printable(error)}") from error
    layer, depth = [obj] if type(obj) in CONTAINERS else [], 0
    while layer:
        depth += 1
        if depth > DEPTH:
            raise FormatError(f"not a {what}: nested deeper than {DEPTH}")
        # Of a manifest with 100,000 shards a million values: asked what they are without a step of Python for each.
        inner = list(chain.from_iterable(v.values() if isinstance(v, dict) else v for v in layer))
        layer = list(compress(inner, map(CONTAINERS.__contains__, map(type, inner))))
    return mapping(obj, what)


def part(obj: dict[str, Any], name: str, place: str) -> Any:
    """`obj[name]`."""
    if name not in obj:
        raise FormatError(f"{place}: it has no {name!r}")
    return obj[name]


def mapping(value: Any, place: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else _wrong(place, value, "an object")


def sequence(value: Any, place: str, longest: int) -> list[Any]:
    if not isinstance(value, list):
        _wrong(place, value, "a list")
    if len(value) > longest:
        raise FormatError(f"{place}: {len(value)} entries, at most {longest} are expected")
    return value


def count(value: Any, place: str, most: int = LONGEST) -> int:
    """A whole number from 0 to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        _wrong(place, value, f"a whole number from 0 to {most}")
    return int(value)


def number(value: Any, place: str) -> float:
    """A finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not _finite(value):
        _wrong(place, value, "a finite number")
    return value  # an int stays one: files are compared byte by byte


def text(value: Any, place: str, pattern: re.Pattern[str]) -> str:
    """All of it matches the pattern, which bounds its length."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        _wrong(place, value, f"text like {pattern.pattern}")
    return str(value)


def one_of(value: Any, place: str, known: Iterable[str]) -> Any:
    return (
        value
        if isinstance(value, str) and value in known
        else _wrong(place, value, f"one of {sorted(known)}")
    )


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def shown(value: Any) -> str:
    """A few printable characters of what may be of any length, or have more digits than Python writes."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of many digits"
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    text = repr(value[:80] if isinstance(value, str) else value)
    return printable(text if len(text) < 100 else f"{text[:100]}...")


def _wrong(place: str, value: Any, expected: str) -> Any:
    raise FormatError(f"{printable(place)}={shown(value)}: expected {expected}")
