"""Annotations too many for memory, kept beside the cache: (part, name) -> values, in one SQLite file a source.

Built once, in one pass and flat memory (10 million captions: a minute or two, 4 GB of disk), by whichever process comes first; the
others wait for it. The name of the file holds what it was made from, so a changed source or changed code is a new file.
"""

import functools
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from filelock import FileLock

_Rows = Iterable[tuple[str, str, Any]]


class Join:
    """Reads a join file. Not shared between processes: SQLite does not survive a fork."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def get(self, part: str, name: str) -> Any:
        """The value of the first row of that name, or None."""
        row = self._db.execute(
            "SELECT value FROM rows WHERE part = ? AND name = ? LIMIT 1", (part, name)
        ).fetchone()
        return None if row is None else json.loads(row[0])

    def items(self, part: str) -> Iterator[tuple[str, Any]]:
        """Names and values of a part, by name."""
        rows = self._db.execute("SELECT name, value FROM rows WHERE part = ? ORDER BY name", (part,))
        return ((name, json.loads(value)) for name, value in rows)


def open_join(folder: str, identity: str, rows: Callable[[], _Rows]) -> Join:
    """The join named by `identity`, made from `rows()` of (part, name, JSON value) if it is not there yet."""
    path = os.path.join(folder, hashlib.sha256(identity.encode()).hexdigest()[:24] + ".sqlite")
    os.makedirs(folder, exist_ok=True)
    with FileLock(path + ".lock"):
        if not os.path.exists(path):
            _build(path, rows())
    return _opened(path, os.getpid())


@functools.lru_cache(maxsize=4)
def _opened(path: str, pid: int) -> Join:
    return Join(path)


def _build(path: str, rows: _Rows) -> None:
    unfinished = path + ".tmp"
    if os.path.exists(unfinished):
        os.remove(unfinished)
    db = sqlite3.connect(unfinished)
    try:
        db.execute("PRAGMA journal_mode = OFF")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE rows (part TEXT, name TEXT, value TEXT)")
        dumps = ((part, name, json.dumps(value, ensure_ascii=False)) for part, name, value in rows)
        db.executemany("INSERT INTO rows VALUES (?, ?, ?)", dumps)
        db.execute("CREATE INDEX by_name ON rows (part, name)")
        db.commit()
    finally:
        db.close()
    os.replace(unfinished, path)
