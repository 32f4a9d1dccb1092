"""What DATASET names, as units of records: image bytes, captions, and the reason where a row is rejected.

A streamed source gives one unit per source shard (an archive, or a range of a big zip's members); a prepared dataset
(`--prepare`) gives ranges of rows. Nothing is decoded here.
"""

import gzip
import itertools
import logging
import lzma
import os
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow

from builders.archives.backoff import Patience
from builders.archives.read_errors import describe, is_lost
from builders.core.joined_captions import JoinedCaptions
from builders.core.record import Record
from loader.recipe import Plan
from precompute.errors import SourceError, UsageError
from precompute.input.faults import innermost, may_pass
from precompute.input.options import parse_options
from precompute.input.row_values import unit_key
from precompute.input.units import Unit, rows_of

logger = logging.getLogger("precompute")

# What readers raise at the damaged part of an archive; the rest of it is lost.
BROKEN_OFF = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    pyarrow.ArrowInvalid,
)


@dataclass(frozen=True)
class SourceOptions:
    """DATASET and the flags that say how to read it; see precompute/run.py for each."""

    dataset: str
    name: str | None = None
    split: str = "train"
    data_dir: Path | None = None
    options: tuple[str, ...] = ()
    image_column: str = "image"
    caption_column: str = "caption"
    caption_cleaning: str | None = None
    captions: tuple[str, ...] = ()
    captions_order: str = "front"
    prepare: bool = False
    limit: int | None = None
    samples_per_shard: int = 4096


class Records(ABC):
    """The rows of one split, dealt out by unit.

    recipe: what of the dataset determines values. plan: what the units are. num_rows: of all units, None where only reading tells.
    joined: files of captions. Raises UsageError.
    """

    # How the plan names the dataset; a local path is another one on each machine.
    name: str
    image_column: str
    joined: Sequence[JoinedCaptions] = ()
    # Whether the dataset's readers wait for a server themselves, and end a lost archive with a row of their own.
    readers_wait: bool

    def __init__(self, source: SourceOptions) -> None:
        self.source = source
        self._dataset, builder, identity = self._open()
        self.recipe = self._recipe(builder)
        self.units = self._units()
        self.num_rows = rows_of(self.units)
        self.plan: Plan = {
            "dataset": self.name,
            "parts": getattr(builder.config, "parts", None),
            "sources": identity,
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
            yield values if isinstance(values, Record) else self._record(values, unit, number)

    def left_out(self, unit: Unit) -> Mapping[str, int]:
        """Files of the source that belong to no row, by reason, of a unit whose rows have been read to the end."""
        return {}

    def files(self, unit: Unit) -> Sequence[str]:
        """Local files that a unit is read from, as far as they are known."""
        return ()

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Options for the dataset's builder, beside those of --options. Raises UsageError."""

    @abstractmethod
    def _checked(self, dataset: Any) -> Any:
        """The opened dataset, once its columns are those that are needed. Raises UsageError."""

    @abstractmethod
    def _identify_sources(self, builder: Any) -> str | None:
        """A hash of what each unit is made of: a source that has changed since must not be resumed into."""

    @abstractmethod
    def _recipe(self, builder: Any) -> dict[str, Any]:
        """Everything of the dataset that determines a value."""

    @abstractmethod
    def _record(self, values: dict[str, Any], unit: Unit, number: int) -> Record:
        """One row, by the values of its columns; `number` counts from 1 in its unit."""

    @abstractmethod
    def _complaint(self, error: BaseException) -> str:
        """The one line for a dataset that cannot be opened."""

    def _open(self) -> tuple[Any, Any, str | None]:
        source = self.source
        options = parse_options(source.options) | self._options()
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
            dataset = self._checked(dataset)
            identity = self._identify_sources(builder)
        except (ValueError, OSError, TypeError, datasets.exceptions.DatasetsError) as error:
            raise UsageError(self._complaint(error)) from error
        return dataset.cast_column(self.image_column, datasets.Image(decode=False)), builder, identity

    def _values(self, unit: Unit) -> Iterator[tuple[int, dict[str, Any] | Record]]:
        """Number (from 1) and columns of each row of a unit; a Record of the archive where it breaks off."""
        raw, number, patience = self.raw_rows(unit), 1, Patience()
        while True:
            try:
                if (values := next(raw, None)) is None:
                    return
            except BROKEN_OFF as error:
                yield number, self._broken_off(unit, number, error)
                return
            # Of whatever kind: it comes from a reader that is not ours.
            except Exception as error:
                if not self.readers_wait and is_lost(error):
                    yield number, self._broken_off(unit, number, error)
                    return
                what = f"{self.source.dataset}: cannot read row {number} of unit {unit.index}: "
                if self.readers_wait or not may_pass(error) or not patience.wait(what + describe(error)):
                    raise SourceError(
                        f"{what}{innermost(error)}. Finished units are kept: mend that and run again"
                    ) from error
                # datasets' readers cannot go on where they stopped.
                raw = itertools.islice(self.raw_rows(unit), number - 1, None)
                continue
            yield number, values
            number, patience = number + 1, Patience()

    def _broken_off(self, unit: Unit, number: int, error: Exception) -> Record:
        text, folder = describe(error), (self.source.data_dir or Path(self.source.dataset)).absolute()
        logger.warning("%s: unit %d breaks off at row %d (%s)", self.source.dataset, unit.index, number, text)
        if folder.exists():  # where it lies on this machine is nobody's business
            text = text.replace(f"{folder.parent}{os.sep}", "")
        key = unit_key(unit, number)
        return Record(key, source=self.name, extras={"error": text}, reject="bad_archive")

    def _units(self) -> list[Unit]:
        limit = self.source.limit
        if self.source.prepare:
            rows = min(len(self._dataset), limit) if limit is not None else len(self._dataset)
            step = self.source.samples_per_shard
            return [Unit(i, 0, at, min(at + step, rows)) for i, at in enumerate(range(0, rows, step))]
        if limit is None:
            return [Unit(i, i) for i in range(self._dataset.num_shards)]
        units: list[Unit] = []
        left = limit
        for shard in range(self._dataset.num_shards):
            count = sum(1 for _ in zip(range(left), self._values(Unit(shard, shard)), strict=False))
            units += [Unit(len(units), shard, 0, count)] if count else []
            left -= count
        return units

    def raw_rows(self, unit: Unit) -> Iterator[dict[str, Any]]:
        if self.source.prepare:
            yield from self._dataset.select(range(unit.start, unit.stop or len(self._dataset)))
            return
        shard = self._dataset.shard(num_shards=self._dataset.num_shards, index=unit.shard)
        for index, row in enumerate(shard):
            if index >= unit.start:
                yield row
            if unit.stop is not None and index + 1 >= unit.stop:
                return
