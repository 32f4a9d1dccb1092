"""Annotations too many for memory, kept beside the cache: (part, name) -> values, in one SQLite file a source.

Built once, in one pass and flat memory (10 million captions: a minute or two, 4 GB of disk), by whichever process comes first; the
others wait for it. The name of the file holds what it was made from, so a changed source or changed code is a new file.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import operator
import os
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from gzip import BadGzipFile
from typing import Any

from filelock import FileLock

from builders.core.errors import AnnotationError, ArchiveError, BuilderError, ConfigError, DiskFullError

OTHERS = "others"  # the part whose one value is how many rows were not picked
_REPEATED = "SELECT name, COUNT(*) FROM rows GROUP BY part, name HAVING COUNT(*) > 1 LIMIT 1"
_Rows = Iterable[tuple[str, str, Any]]
# As json.loads, in half its time: what was dumped here has no white space around it.
_decode = json.JSONDecoder().raw_decode
# What readers raise on annotations that are cut short, damaged, or something else.
_UNREADABLE = (
    ArchiveError,
    AttributeError,  # a number where a name is meant
    BadGzipFile,
    EOFError,
    LookupError,
    RuntimeError,  # an encrypted or oddly packed zip, JSON nested without end
    TypeError,
    ValueError,
    OverflowError,
    sqlite3.Error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class Join:
    """Reads a join file. Not shared between processes: SQLite does not survive a fork."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def get(self, part: str, name: str) -> Any:
        """The value of the first row of that name, or None."""
        found = self.find(part, name)
        return None if found is None else found[1]

    def find(self, part: str, name: str) -> tuple[int, Any] | None:
        """The number of the first row of that name, from 0, and its value; or None."""
        row = self._db.execute(
            "SELECT rowid, value FROM rows WHERE part = ? AND name = ? LIMIT 1", (part, name)
        ).fetchone()
        return None if row is None else (row[0] - 1, _decode(row[1])[0])

    def __len__(self) -> int:
        return int(self._db.execute("SELECT MAX(rowid) FROM rows").fetchone()[0] or 0)

    def items(self, part: str, but: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
        """Names and values of a part, by name; those of the names `but` are passed over."""
        rows = self._db.execute("SELECT name, value FROM rows WHERE part = ? ORDER BY name", (part,))
        return ((name, _decode(value)[0]) for name, value in rows if name not in but)

    def counts(self) -> dict[str, int]:
        """Rows of each part."""
        return dict(self._db.execute("SELECT part, COUNT(*) FROM rows GROUP BY part"))


def open_join(
    folder: str, source: str, identity: str, rows: Callable[[], _Rows], unique: bool = False
) -> Join:
    """The join named by `identity`, made from `rows()` of (part, name, JSON value) if it is not there yet.

    Raises AnnotationError, naming `source`, where `rows()` cannot make sense of it, and ConfigError as `rows()` does or where
    `unique` names are not.
    """
    path = os.path.join(folder, hashlib.sha256(identity.encode()).hexdigest()[:24] + ".sqlite")
    os.makedirs(folder, exist_ok=True)
    with FileLock(path + ".lock"):
        if not os.path.exists(path):
            with _told(source, folder):
                _build(path, rows(), source if unique else None)
    return _opened(path, os.getpid())


def sort_by_name(rows: Iterable[tuple[Any, Any, str]]) -> Iterator[tuple[Any, list[tuple[Any, str]]]]:
    """Group (name, rank, text), which come in any order, by name: None first, then by rank. In flat memory, on disk."""
    with contextlib.closing(sqlite3.connect("")) as db:  # a file without a name, gone when closed
        _no_journal(db)
        db.execute("CREATE TABLE rows (name, rank, text)")
        db.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)
        found = db.execute("SELECT name, rank, text FROM rows ORDER BY name, rank, rowid")
        for name, group in itertools.groupby(found, operator.itemgetter(0)):
            yield name, [(rank, text) for _, rank, text in group]


def count_others(join: Join, read: set[str]) -> int:
    """How many rows are of none of the parts that are read, those included that the join leaves out."""
    counts = join.counts()
    return sum(counts[part] for part in counts.keys() - read - {OTHERS}) + (join.get(OTHERS, "") or 0)


@contextlib.contextmanager
def _told(source: str, folder: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:  # which says all that is to be said
        raise
    except sqlite3.OperationalError as error:
        raise DiskFullError(
            f"{folder} or the temporary folder: {error}, while {source} was sorted. Make room, or set cache_dir= and TMPDIR"
        ) from error
    except (*_UNREADABLE, OSError) as error:
        # Of a damaged Parquet file, Arrow says OSError without a number.
        if isinstance(error, OSError) and (error.errno is not None or isinstance(error, BuilderError)):
            raise
        raise AnnotationError(
            f"{source}: its annotations cannot be read, cut short or damaged: {type(error).__name__}: {error}. Fetch it again"
        ) from error


@functools.lru_cache(maxsize=4)
def _opened(path: str, pid: int) -> Join:
    return Join(path)


def _build(path: str, rows: _Rows, unique: str | None) -> None:
    """unique: the file to name where two rows have one name; None where they may."""
    unfinished = path + ".tmp"
    if os.path.exists(unfinished):
        os.remove(unfinished)
    with contextlib.closing(sqlite3.connect(unfinished)) as db:
        _no_journal(db)
        db.execute("CREATE TABLE rows (part TEXT, name TEXT, value TEXT)")
        dumps = ((part, name, json.dumps(value)) for part, name, value in rows)
        db.executemany("INSERT INTO rows VALUES (?, ?, ?)", dumps)
        db.execute("CREATE INDEX by_name ON rows (part, name)")
        if unique and (again := db.execute(_REPEATED).fetchone()):
            raise ConfigError(
                f"{unique}: {again[1]:,} rows of {again[0]!r}; keep one of them, with a list in `captions` for several"
            )
        db.commit()
    os.replace(unfinished, path)


def _no_journal(db: sqlite3.Connection) -> None:
    """What is unfinished is thrown away, so it need not survive a crash."""
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
