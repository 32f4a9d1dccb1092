"""Captions from elsewhere: a table of them, joined to rows by key, URL or source, on disk and in flat memory.

    load_dataset("builders/cc12m", captions_from={"llava": "recaptions.parquet"})

The table has one of the columns `key`, `url` and `source`, as the records have them, and `caption`, or a list in `captions`.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import huggingface_hub
from huggingface_hub.utils import httpx

from builders.core.annotation_db import Join, open_join
from builders.core.captions import whole
from builders.core.errors import ConfigError
from builders.core.tables import column_names, read_table

__all__ = ["JoinedCaptions", "check_files", "hash_files", "local_path", "merge", "open_captions", "url_of"]

_JOINED_BY = ("key", "url", "source")
_CAPTIONS = ("caption", "captions")
_SUFFIXES = (".parquet", ".csv", ".jsonl")
_NAME = re.compile(r"[A-Za-z0-9]+")
_EXAMPLE = 'captions_from={"llava": "recaptions.parquet"}'


def check_files(files: Any, own_kind: str) -> None:
    """Raises ConfigError where `files` are not {NAME: FILE}, as far as that can be said without opening one."""
    if not isinstance(files, Mapping) or not files:
        raise ConfigError(f"captions_from={files!r}: give files by name, as in {_EXAMPLE}")
    for name, file in files.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"captions_from: {name!r} is no name; give letters and digits, as in {_EXAMPLE}"
            )
        if name == own_kind:
            raise ConfigError(
                f"captions_from: {name!r} is the kind of the dataset's own captions; give another name"
            )
        if not isinstance(file, str | os.PathLike) or not os.fspath(file).endswith(_SUFFIXES):
            raise ConfigError(
                f"captions_from: {name}={file!s}: give a file that ends in {', '.join(_SUFFIXES)}"
            )


@functools.lru_cache(maxsize=16)
def local_path(file: str | os.PathLike[str], token: str | bool | None) -> str:
    """The file as a path on this machine; one of the Hub is fetched into its cache. Raises ConfigError where it is not there."""
    path = os.fspath(file)
    if path.startswith("hf://"):
        try:
            place: Any = huggingface_hub.HfFileSystem(token=token).resolve_path(path)
            return huggingface_hub.hf_hub_download(
                place.repo_id,
                place.path_in_repo,
                repo_type=place.repo_type,
                revision=place.revision,
                token=token,
            )
        except (OSError, ValueError, httpx.HTTPError) as error:
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"captions_from: {path}: cannot be fetched: {why}") from error
    if "://" in path:
        raise ConfigError(f"captions_from: {path}: give a local file, or one of the Hub as hf://datasets/...")
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise ConfigError(f"captions_from: {path}: no such file")
    return path


def hash_files(files: Mapping[str, str], token: str | bool | None) -> dict[str, str]:
    """The sha256 of each file by its name. Raises ConfigError."""
    hashes = {}
    for name, file in files.items():
        path = local_path(file, token)
        stat = os.stat(path)
        hashes[name] = _sha256(path, stat.st_size, stat.st_mtime_ns)
    return hashes


@functools.lru_cache(maxsize=16)
def _sha256(path: str, size: int, changed: int) -> str:
    """`size` and `changed` are no inputs; they make a changed file a different call."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class JoinedCaptions(NamedTuple):
    """The captions of one file. joined_by: the column that they are looked up by."""

    name: str
    joined_by: str
    join: Join

    def find(self, key: str, source: str, extras: Mapping[str, Any]) -> tuple[int, list[object]] | None:
        """The number of the row of the file that belongs to a record's, and its captions; or None."""
        value = url_of(extras) if self.joined_by == "url" else key if self.joined_by == "key" else source
        return None if value is None else self.join.find(self.joined_by, whole(value))


def open_captions(
    name: str, file: str, sha256: str, folder: str, code: str, token: str | bool | None, has_url: bool
) -> JoinedCaptions:
    """Joins a file on disk, in `folder`, if nobody has yet.

    code: changes with the code that joins. has_url: whether records have one.

    Raises ConfigError where the file has no such columns, cannot be read, or has two rows of one key.
    """
    path = local_path(file, token)
    place = f"captions_from: {name}={os.fspath(file)}"
    columns = column_names(path)
    by = [column for column in _JOINED_BY if column in columns]
    if len(by) != 1:
        raise ConfigError(
            f"{place}: needs exactly one of the columns {', '.join(_JOINED_BY)}; has {', '.join(columns) or 'none'}"
        )
    if by[0] == "url" and not has_url:
        raise ConfigError(f"{place}: joined by url, which this dataset's rows have not; give key or source")
    column = next((column for column in _CAPTIONS if column in columns), None)
    if column is None:
        raise ConfigError(f"{place}: needs a column caption, or captions; has {', '.join(columns)}")
    identity = f"{code} captions {sha256}"
    rows = functools.partial(_read, path, by[0], column)
    return JoinedCaptions(name, by[0], open_join(folder, place, identity, rows, unique=True))


def _read(path: str, by: str, column: str) -> Iterator[tuple[str, str, Any]]:
    for number, row in enumerate(read_table(path, columns=[by, column]), 1):
        value, caption = row.get(by), row.get(column)
        if value is None:
            raise ConfigError(f"captions_from: {path}: row {number} has no {by}")
        captions = caption if isinstance(caption, list) else [caption]
        yield by, str(value), [text for text in captions if isinstance(text, str)]


def url_of(extras: Mapping[str, Any]) -> str | None:
    """The URL of a row that has one, or has it in the JSON beside it, as img2dataset writes."""
    url, beside = extras.get("url"), extras.get("json")
    if url is None and beside:
        with contextlib.suppress(ValueError, RecursionError):
            beside = json.loads(beside) if isinstance(beside, str) else beside
        url = beside.get("url") if isinstance(beside, Mapping) else None
    return url if isinstance(url, str) else None


def merge(
    own: Sequence[object], kinds: Sequence[str], joined: Mapping[str, Sequence[object]], order: str
) -> tuple[list[object], list[str]]:
    """All captions of a row and their kinds; `joined` by NAME, before its own or behind."""
    texts = [text for found in joined.values() for text in found]
    names = [name for name, found in joined.items() for _ in found]
    if order == "front":
        return [*texts, *own], [*names, *kinds]
    return [*own, *texts], [*kinds, *names]
