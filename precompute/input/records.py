"""What DATASET names, as units of records: image bytes, captions, and the reason where a row is rejected.

A streamed source gives one unit per source shard (an archive, or a range of a big zip's members); a prepared dataset
(`--prepare`) gives ranges of rows. Nothing is decoded here.
"""

import contextlib
import dataclasses
import datetime
import gzip
import hashlib
import itertools
import json
import logging
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import datasets
import pyarrow
from huggingface_hub.utils import httpx

import builders  # noqa: F401  registers "builders/<name>" with datasets
from builders.archives.backoff import Patience
from builders.archives.read_errors import (
    causes,
    describe,
    is_lost,
    is_refusal,
    status_of,
    verdict,
    without_query,
)
from builders.core.base import make_key
from builders.core.captions import clean_captions
from builders.core.errors import BuilderError
from precompute.errors import SourceError, UsageError
from precompute.input.units import Unit
from precompute.shards.unit_writer import Row

logger = logging.getLogger("precompute")

OURS = "builders/"
LONGEST_KEY = 64  # with its unit and extension it fits into the 100 characters of a plain tar header
BROKEN_OFF = (  # what readers raise at the damaged part of an archive; the rest of it is lost
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    pyarrow.ArrowInvalid,
)
NETWORK = (aiohttp.ClientError, httpx.RequestError, ConnectionError, TimeoutError)
COMMON = ("key", "image", "caption", "width", "height", "source", "reject")
NO_VALUE = {
    "name",
    "version",
    "data_dir",
    "data_files",
    "description",
    "parts",
    "keep_rejected",
    "data_fingerprint",
    "links",  # where the archives are for some days, by a file on this machine
}


@dataclass(frozen=True)
class Record:
    """One source row. image: encoded bytes, None where missing; reject: reason, None for a row to encode."""

    row: Row
    image: bytes | None
    reject: str | None = None


@dataclass(frozen=True)
class Source:
    """DATASET and the flags that say how to read it; see precompute/run.py for each."""

    dataset: str
    name: str | None = None
    split: str = "train"
    data_dir: Path | None = None
    options: tuple[str, ...] = ()
    image_column: str = "image"
    caption_column: str = "caption"
    caption_cleaning: str | None = None
    prepare: bool = False
    limit: int | None = None
    samples_per_shard: int = 4096


class Records:
    """The rows of one split, dealt out by unit.

    recipe: what of the dataset determines values. plan: what the units are. Raises UsageError naming the flag.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._ours = source.dataset.startswith(OURS)
        self._cleaning = source.caption_cleaning or "light"
        self._dataset, self.recipe = self._open()
        self.units = self._units()
        self.plan = {
            "dataset": source.dataset if self._ours else Path(source.dataset).name,
            "parts": self._parts,
            "sources": self._sources,
            "units": len(self.units),
            "prepared": source.prepare,
            "limit": source.limit,
            "samples_per_shard": source.samples_per_shard,
        }

    def rows(self, unit: Unit) -> Iterator[Record]:
        """The records of one unit, in source order. An archive that breaks off, or is gone, ends with one row `bad_archive`.

        Raises SourceError where something else than a row or an archive is at fault, and the network stays away.
        """
        for number, values in self._values(unit):
            if isinstance(values, Record):
                yield values
            else:
                yield self._ours_record(values) if self._ours else self._foreign_record(values, unit, number)

    def _values(self, unit: Unit) -> Iterator[tuple[int, dict[str, Any] | Record]]:
        """Number (from 1) and columns of each row of a unit; a Record of the archive where it breaks off."""
        raw, number, patience = self._raw(unit), 1, Patience()
        while True:
            try:
                values = next(raw)
            except StopIteration:
                return
            except BROKEN_OFF as error:
                yield number, self._broken_off(unit, number, error)
                return
            except Exception as error:  # of whatever kind: it comes from a reader that is not ours
                if not self._ours and is_lost(error):
                    yield number, self._broken_off(unit, number, error)
                    return
                what = f"{self.source.dataset}: cannot read row {number} of unit {unit.index}: "
                if self._ours or not _may_pass(error) or not patience.wait(what + describe(error)):
                    raise SourceError(
                        f"{what}{_innermost(error)}. Finished units are kept: mend that and run again"
                    ) from error
                raw = itertools.islice(self._raw(unit), number - 1, None)  # datasets' readers cannot go on
                continue
            yield number, values
            number, patience = number + 1, Patience()

    def _broken_off(self, unit: Unit, number: int, error: Exception) -> Record:
        text = describe(error)
        logger.warning("%s: unit %d breaks off at row %d (%s)", self.source.dataset, unit.index, number, text)
        row = Row(_key(unit, number), source=self.source.dataset, extras={"error": text})
        return Record(row, None, "bad_archive")

    def _open(self) -> tuple[Any, dict[str, Any]]:
        source = self.source
        options = dict(parse_option(option) for option in source.options)
        secret = {"token", "storage_options"} & options.keys()
        if secret:  # options are part of the recipe, which is published
            raise UsageError(
                f"--options {secret.pop()}=...: give it to `hf auth login` or the environment instead"
            )
        if options.pop("trust_remote_code", False):  # datasets would take it for an option of the dataset
            raise UsageError("--options trust_remote_code=...: no code of a dataset is run; leave it out")
        if self._ours and (source.image_column, source.caption_column) != ("image", "caption"):
            raise UsageError(
                f"--image-column, --caption-column: {source.dataset} has its own; leave them out"
            )
        if self._ours:
            options["keep_rejected"] = True
            if source.caption_cleaning:
                options["caption_cleaning"] = source.caption_cleaning
        if source.data_dir is not None:
            if not source.data_dir.exists():
                raise UsageError(f"--data-dir {source.data_dir}: no such folder")
            options["data_dir"] = str(source.data_dir.absolute())
        try:
            builder = datasets.load_dataset_builder(source.dataset, source.name, **options)
            if source.prepare:
                builder.download_and_prepare()
                dataset = builder.as_dataset(split=source.split)
            else:
                dataset = builder.as_streaming_dataset(split=source.split)
            if not self._ours:
                dataset = dataset if source.prepare else self._typed(dataset)
                self._check_columns(dataset)
            self._sources = self._identify_sources(builder)
        except (ValueError, OSError, TypeError, datasets.exceptions.DatasetsError) as error:
            message = _innermost(error)
            unknown = re.search(r"(?:doesn't have a|unexpected keyword argument) '(\w+)'", message)
            if unknown and self._ours:
                raise UsageError(self._no_such_option(unknown[1])) from error
            prefix = "" if message.startswith(source.dataset) else f"{source.dataset}: "
            raise UsageError(prefix + message) from error
        image = "image" if self._ours else source.image_column
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
        self._parts = getattr(builder.config, "parts", None)
        return dataset, self._recipe(builder)

    def _no_such_option(self, name: str) -> str:
        config = datasets.load_dataset_builder(self.source.dataset, self.source.name).config
        theirs = {
            "name",
            "version",
            "description",
            "data_dir",
            "data_files",
            "keep_rejected",
            "data_fingerprint",
        }
        fields = {field.name for field in dataclasses.fields(config)} - theirs
        return f"--options {name}=...: {self.source.dataset} has no such option; it has {', '.join(sorted(fields))}"

    def _typed(self, dataset: Any) -> Any:
        """With the types of its columns, which a stream of CSV or JSON only knows by its first rows. Raises UsageError."""
        try:
            return dataset._resolve_features()
        except StopIteration:
            raise UsageError(f"{self.source.dataset}: split {self.source.split} has no rows") from None

    def _identify_sources(self, builder: Any) -> str | None:
        """A hash of what each unit is made of: a source that has changed since must not be resumed into.

        Of ours what makes up each shard, wherever it lies; of others the names and sizes of local files; None for the Hub's,
        whose commit is in the recipe.
        """
        if self._ours:
            stream = builder.as_streaming_dataset(split=self.source.split)
            return _hash(builder.identity(stream._ex_iterable.kwargs["shards"]))
        folder = self.source.data_dir or Path(self.source.dataset)
        if not folder.is_dir():
            return None
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return _hash(repr([(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]))

    def _check_columns(self, dataset: Any) -> None:
        names = dataset.column_names or []
        for flag, column in (
            ("--image-column", self.source.image_column),
            ("--caption-column", self.source.caption_column),
        ):
            if column not in names:
                folder = Path(self.source.dataset)
                cure = (
                    f". A folder of photographs: builders/folder --data-dir {folder}"
                    if folder.is_dir()
                    else ""
                )
                raise UsageError(
                    f"{flag} {column}: {self.source.dataset} has no such column; it has {sorted(names)}{cure}"
                )

    def _recipe(self, builder: Any) -> dict[str, Any]:
        source = self.source
        if self._ours:
            config = {
                field.name: getattr(builder.config, field.name)
                for field in dataclasses.fields(builder.config)
                if field.name not in NO_VALUE
            }
            return {
                "path": source.dataset,
                "name": builder.config.name,
                "version": str(builder.info.version),
                **json.loads(json.dumps(config, default=str)),
            }
        local = Path(source.dataset).exists()
        commit = re.search(r"@([0-9a-f]{40})", builder.base_path or "")
        return {
            "path": Path(source.dataset).name if local else source.dataset,
            "name": builder.config.name,
            "revision": commit[1] if commit else None,
            "options": sorted(_portable(option) for option in source.options),
            "image_column": source.image_column,
            "caption_column": source.caption_column,
            "caption_cleaning": self._cleaning,
        }

    def _units(self) -> list[Unit]:
        limit = self.source.limit
        if self.source.prepare:
            rows = min(len(self._dataset), limit) if limit is not None else len(self._dataset)
            step = self.source.samples_per_shard
            return [
                Unit(i, 0, start, min(start + step, rows)) for i, start in enumerate(range(0, rows, step))
            ]
        if limit is None:
            return [Unit(i, i) for i in range(self._dataset.num_shards)]
        units: list[Unit] = []
        left = limit
        for shard in range(self._dataset.num_shards):
            count = sum(1 for _ in zip(range(left), self._values(Unit(shard, shard)), strict=False))
            if count:
                units.append(Unit(len(units), shard, 0, count))
            left -= count
            if not left:
                break
        return units

    def _raw(self, unit: Unit) -> Iterator[dict[str, Any]]:
        if self.source.prepare:
            yield from self._dataset.select(range(unit.start, unit.stop or len(self._dataset)))
            return
        rows = iter(self._dataset.shard(num_shards=self._dataset.num_shards, index=unit.shard))
        for index, row in enumerate(rows):
            if index >= unit.start:
                yield row
            if unit.stop is not None and index + 1 >= unit.stop:
                return

    def _ours_record(self, values: dict[str, Any]) -> Record:
        extras = {name: value for name, value in values.items() if name not in COMMON and value is not None}
        row = Row(
            values["key"],
            values["caption"],
            values["width"],
            values["height"],
            values["source"],
            _jsonable(extras),
        )
        return Record(row, _image_bytes(values["image"]), values["reject"])

    def _foreign_record(self, values: dict[str, Any], unit: Unit, number: int) -> Record:
        source = self.source
        raw = values[source.caption_column]
        texts = raw if isinstance(raw, list) else [raw]
        cleaned, fault = clean_captions(texts, self._cleaning)
        captions = [caption for _, caption in cleaned]
        image = _image_bytes(values[source.image_column])
        reject = "missing_image" if image is None else fault
        kept = {
            name: v for name, v in values.items() if name not in (source.image_column, source.caption_column)
        }
        extras = {**_jsonable(kept), "captions": captions}
        name = str(values.get("__url__") or source.dataset)
        row = Row(_key(unit, number, values), captions[0] if captions else None, source=name, extras=extras)
        return Record(row, image, reject)


def parse_option(option: str) -> tuple[str, Any]:
    """`parts=0-22` or `min_image_size=512`: the value as JSON where it is JSON, else as it stands."""
    name, separator, value = option.partition("=")
    if not separator or not name.isidentifier():
        raise UsageError(f"--options {option}: write each as NAME=VALUE, for example parts=0-22")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _portable(option: str) -> str:
    """An option as the recipe has it: of a local path only the last part, of a URL no query, which may be a signature."""
    name, value = parse_option(option)
    bare = _bare(value)
    if bare == value:
        return option
    return f"{name}={bare if isinstance(bare, str) else json.dumps(bare)}"


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if isinstance(value, dict):
        return {name: _bare(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    if "://" in value:
        return value.partition("?")[0]
    return Path(value).name if os.path.isabs(value) or os.path.exists(value) else value


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _image_bytes(image: dict[str, Any] | None) -> bytes | None:
    if image is None:
        return None
    if image.get("bytes") is None and image.get("path"):
        return _read(image["path"])
    return image.get("bytes")


def _read(path: str) -> bytes | None:
    """A file on disk or on a server; None where it is gone, or refused to all. Raises SourceError for other failures."""
    patience = Patience()
    while True:
        try:
            with datasets.utils.file_utils.xopen(path, "rb") as file:
                return bytes(file.read())
        except (OSError, aiohttp.ClientError, httpx.HTTPError) as error:
            passing, what = _may_pass(error), f"{without_query(path)}: {describe(error)}"
            if status_of(error) in (403, 404, 410, 451) or (
                isinstance(error, FileNotFoundError) and not passing
            ):
                return None
            if not passing or not patience.wait(what):
                raise SourceError(f"{what}: cannot be read. Mend that and run again") from error


def _key(unit: Unit, number: int, values: dict[str, Any] | None = None) -> str:
    """Key of the row at `number` (from 1) of a unit of a dataset that is not ours: unique over all units.

    A WebDataset's own key is kept behind the unit's number: two of its tars may use the same.
    """
    own = str((values or {}).get("__key__") or f"{unit.start + number - 1:07d}")
    key = make_key(own)
    if len(key) > LONGEST_KEY:
        key = f"{key[: LONGEST_KEY - 9]}-{hashlib.sha256(own.encode()).hexdigest()[:8]}"
    return f"{unit.index:05d}-{key}"


def _utf8(text: str) -> str:
    """JSON can hold half a character (a lone surrogate); nothing else can."""
    return text.encode("utf-8", "replace").decode()


def _jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """Without the members that JSON cannot hold (bytes, arrays, NaN); dates as text."""
    kept = {}
    for name, value in values.items():
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            kept[name] = json.loads(
                _utf8(json.dumps(value, default=_iso, allow_nan=False, ensure_ascii=False))
            )
    return kept


def _iso(value: Any) -> str:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    raise TypeError(f"JSON cannot hold a {type(value).__name__}")


def _may_pass(error: BaseException) -> bool:
    """Whether it is the network, and not what came through it."""
    is_network = status_of(error) is not None or any(isinstance(cause, NETWORK) for cause in causes(error))
    return is_network and verdict(error, "") is None


def _innermost(error: BaseException) -> str:
    """datasets wraps what went wrong; the message at the bottom, or of ours, is the one that names the cure."""
    while error.__cause__ is not None and not isinstance(error, BuilderError):
        error = error.__cause__
    text = without_query(error).strip() or type(error).__name__
    if is_refusal(error) and not isinstance(error, BuilderError):
        text += ": run `hf auth login` with an account that may read it, or take fresh links"
    return text
