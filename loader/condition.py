"""Which samples are read: `where=` (SQL), `keys=` and `subset=`, alone or together, worked out from the sidecars alone.

The answer is kept in the cache folder under shards and condition, so that the next start takes no time.
"""

import hashlib
import io
import itertools
import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from loader.extras import read_extras
from loader.joined import JoinedSource, Source
from loader.sidecar import I64
from loader.source import ManifestSource
from loader.tar_source import TarSource

Keys = str | os.PathLike[str] | Iterable[str]
# Columns of a sidecar; `extras` is a JSON object of more of them.
COLUMNS = (
    "key",
    "caption",
    "width",
    "height",
    "source",
)
NO_COLUMNS = {
    "and",
    "or",
    "not",
    "in",
    "is",
    "null",
    "like",
    "ilike",
    "between",
    "true",
    "false",
    "lower",
    "upper",
    "length",
}
THREADS = 8
ROW = "sample number"


@dataclass(frozen=True)
class Condition:
    """What samples must fulfil, all of it; the same samples whatever the shards they lie in.

    where: an SQL expression over key, caption, width, height (pixels), source and the extras by name; by DuckDB. Where it is
        null, the sample is left out.
    keys: their keys; or a parquet, csv or text file with a column `key`, or with a key a line.
    subset: (a, b) with 0 <= a < b <= 1: the keys whose hash, as a share of all hashes, is at least a and below b. So (0, 0.99)
        and (0.99, 1) never share a sample.
    """

    where: str | None = None
    keys: Keys | None = None
    subset: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a subset that is no part of (0, 1) and for an empty expression."""
        if self.subset is not None and not 0 <= self.subset[0] < self.subset[1] <= 1:
            raise ValueError(f"subset={self.subset!r}: give (a, b) with 0 <= a < b <= 1, as (0, 0.99)")
        if self.where is not None and not self.where.strip():
            raise ValueError("where='': give an SQL condition, as where='width >= 512', or leave it out")

    def __bool__(self) -> bool:
        return not (self.where is None and self.keys is None and self.subset is None)

    @cached_property
    def wanted(self) -> pa.Array:
        """The distinct keys, sorted. Raises ValueError for a file without them."""
        assert self.keys is not None
        found = _read_keys(Path(self.keys)) if isinstance(self.keys, str | os.PathLike) else list(self.keys)
        return pa.array(sorted(set(found)), pa.string())

    @cached_property
    def identity(self) -> str:
        """Equal for conditions that mean the same by the same words; empty without any."""
        if not self:
            return ""
        digest = hashlib.sha256(json.dumps([self.where, self.subset]).encode())
        if self.keys is not None:
            for key in self.wanted.to_pylist():
                digest.update(b"\n" + key.encode())
        return digest.hexdigest()


def select_samples(
    source: Source, condition: Condition, folder: Path, members: Sequence[str], columns: Sequence[str]
) -> list[I64]:
    """List for each shard the numbers of the samples that fulfil the condition, in order. folder: of the cache.

    Raises ValueError for an expression that the columns do not allow, OSError or FormatError for an unreadable sidecar.
    """
    if not isinstance(source, TarSource):
        return _kept(source, condition, folder)
    if condition.where is not None:
        raise ValueError(
            f"where={condition.where!r}: the tars of {source.files.url} have no sidecars; keys= and subset= work"
        )
    return [
        np.flatnonzero(_by_key(pa.array([table.key(n) for n in range(len(table))], pa.string()), condition))
        for table in (source.open(n, members, columns).table for n in range(len(source.names)))
    ]


def _kept(source: ManifestSource | JoinedSource, condition: Condition, folder: Path) -> list[I64]:
    shards = json.dumps([source.fingerprint, source.names, source.sidecars, condition.identity])
    path = folder / "selected" / f"{hashlib.sha256(shards.encode()).hexdigest()}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return np.split(arrays["samples"].astype(np.int64), arrays["ends"][:-1])
    except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error):
        pass  # not there, or cut: it is made anew
    found = _work_out(source, condition)
    ends = np.cumsum([len(part) for part in found])
    save_chosen(path, samples=np.concatenate([np.empty(0, np.int64), *found]).astype(np.int32), ends=ends)
    return found


def save_chosen(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """A file that is there whole or not at all. What cannot be kept is worked out again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as out:
            try:
                np.savez(out, **arrays)  # type: ignore[arg-type]
                out.flush()
                os.replace(out.name, path)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError:
        return


def _work_out(source: ManifestSource | JoinedSource, condition: Condition) -> list[I64]:
    words = {word.lower() for word in re.findall(r"[A-Za-z_]\w*", condition.where or "")}
    columns = {"status", "key"} | {name for name in COLUMNS if name in words}
    if words - set(COLUMNS) - NO_COLUMNS:
        columns.add("extras")
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(lambda n: source.ok_rows(n, sorted(columns)), range(len(source.names))))
    counts = [len(table) for table in tables]
    firsts = np.cumsum([0, *counts])
    whole = pa.concat_tables(tables) if tables else pa.table({"key": pa.array([], pa.string())})
    chosen = _by_key(whole["key"], condition)
    if condition.where is not None:
        chosen &= _by_sql(whole, condition.where)
    return [np.flatnonzero(chosen[a:b]) for a, b in itertools.pairwise(firsts.tolist())]


def _by_key(keys: Any, condition: Condition) -> npt.NDArray[np.bool_]:
    chosen = np.ones(len(keys), np.bool_)
    if condition.keys is not None:
        import pyarrow.compute as pc

        chosen &= pc.is_in(keys, value_set=condition.wanted).to_numpy(zero_copy_only=False)
    if condition.subset is not None:
        low, high = (round(bound * (1 << 64)) for bound in condition.subset)
        chosen &= np.fromiter((low <= place < high for place in _places(keys)), np.bool_, len(keys))
    return chosen


def _places(keys: Any) -> Iterator[int]:
    """A number below 2**64 for each key, of the key alone."""
    for key in keys.to_pylist():
        yield int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def _by_sql(table: pa.Table, where: str) -> npt.NDArray[np.bool_]:
    """DuckDB sees this table and nothing else: no file, no network, no variable of ours."""
    try:
        import duckdb
    except ImportError:
        raise ValueError(f"where={where!r} needs DuckDB: pip install 'latentmill[select]'") from None
    if "extras" in table.column_names:
        table = _with_extras(table)
    names = table.column_names
    table = table.append_column(ROW, pa.array(np.arange(len(table)), pa.int64()))
    closed: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "python_enable_replacements": "false",
        "lock_configuration": "true",
    }
    with duckdb.connect(config=closed) as connection:
        try:
            rows = connection.from_arrow(table).filter(where).project(f'"{ROW}"').fetchnumpy()[ROW]
        except duckdb.Error as error:
            known = ", ".join(dict.fromkeys([*COLUMNS, *names]))
            raise ValueError(f"where={where!r}: {str(error).splitlines()[0]}. There are: {known}") from error
    chosen = np.zeros(len(table), np.bool_)
    chosen[np.asarray(rows, np.int64)] = True
    return chosen


def _with_extras(table: pa.Table) -> pa.Table:
    """The extras of all rows as columns beside the others, of the types that their values have."""
    objects = [
        _opened(text) if '"json"' in (text or "") else text or "{}" for text in table["extras"].to_pylist()
    ]
    table = table.drop_columns(["extras"])
    if not objects:
        return table
    lines = "\n".join(objects).encode()
    import pyarrow.json

    options = pyarrow.json.ReadOptions(block_size=max(1 << 20, 2 * max(map(len, objects))))
    try:
        extras = pyarrow.json.read_json(io.BytesIO(lines), read_options=options)
    except pa.ArrowException as error:
        raise ValueError(f"where: the extras of these shards are no columns ({error}); use others") from error
    for name in extras.column_names:
        if name not in COLUMNS:
            table = table.append_column(name, extras[name])
    return table


def _opened(text: str) -> str:
    """Extras as a JSON object, with the numbers and words of the JSON that stood beside the image, and without that."""
    plain = {name: value for name, value in read_extras(text).items() if name != "json"}
    return json.dumps({n: v for n, v in plain.items() if v is None or isinstance(v, str | int | float)})


def _read_keys(path: Path) -> list[str]:
    try:
        if path.suffix == ".parquet":
            column = pq.read_table(path, columns=["key"])["key"]
        elif path.suffix == ".csv":
            import pyarrow.csv

            column = pyarrow.csv.read_csv(path)["key"]
        else:
            return [line for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError, KeyError) as error:  # Arrow's errors are ValueErrors or KeyErrors
        raise ValueError(
            f"keys={str(path)!r}: {error}. Give a file with a column `key`, or with one key a line"
        ) from error
    return [str(key) for key in column.to_pylist()]
