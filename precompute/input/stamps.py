"""What a unit's source files looked like when they were read, so that an edited one is noticed: sizes and times, not contents."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from precompute.commands import retyped

NAMED = 3
Look = Callable[[str], tuple[int, int]]


@dataclass(frozen=True)
class Stamp:
    """Stamps the local files that a unit is read from. sizes: hash of names and sizes. times: hash of their times of change; newest:
    the last of these, in ns."""

    sizes: str
    times: str
    newest: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def stamp_of(paths: Sequence[str], look: Look) -> Stamp | None:
    """None where no file is known: a remote source, or a reader that is not ours. look: at size and time of a path."""
    if not paths:
        return None
    sizes, times, newest = hashlib.sha256(), hashlib.sha256(), 0
    for path in paths:
        size, changed = look(path)
        sizes.update(f"{os.path.basename(path)} {size}\n".encode("utf-8", "surrogateescape"))
        times.update(f"{changed}\n".encode())
        newest = max(newest, changed)
    return Stamp(sizes.hexdigest()[:16], times.hexdigest()[:16], newest)


def newer(paths: Sequence[str], then: dict[str, Any]) -> list[str]:
    """Names of the files that have changed since; none where an edit kept the time, or a file is gone."""
    since = then.get("newest")
    changed = [path for path in paths if isinstance(since, int) and look_at(path)[1] > since]
    return [os.path.basename(path) for path in changed]


def listed(names: Sequence[str]) -> str:
    """The first of some names."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (", ".join(names[:NAMED]) + more) or "files"


def told(units: int, names: Sequence[str], redo: bool) -> str:
    """What a run says of changed sources before it begins."""
    what = f"changed since they were encoded: {listed(names)}, in {units} finished unit{'s' if units > 1 else ''}; "
    return what + (
        "done again"
        if redo
        else f"what is stored is of then; {retyped('--redo-changed')} does these units again"
    )


def look_at(path: str) -> tuple[int, int]:
    """Size and time of change in ns; -1 and 0 where there is no such file."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns
