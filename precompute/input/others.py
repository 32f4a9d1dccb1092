"""Records of any other dataset that `datasets.load_dataset` takes, judged here by an image and a caption column."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from builders.core.config import ImageCaptionConfig
from builders.core.gate import judge
from builders.core.joined_captions import merge
from builders.core.record import Record, SourceRow
from loader.printable import printable
from precompute.errors import UsageError
from precompute.input.caption_files import CaptionFiles
from precompute.input.data_files import bytes_of
from precompute.input.faults import innermost
from precompute.input.local_files import LocalFiles
from precompute.input.options import portable
from precompute.input.records import Records, SourceOptions
from precompute.input.row_values import image_bytes, jsonable, unit_key
from precompute.input.units import Unit

CAPTION_KIND = "caption"  # of whatever a dataset that is not ours has in its caption column


class OtherRecords(Records):
    """The records of a dataset of others."""

    readers_wait = False

    def __init__(self, source: SourceOptions) -> None:
        super().__init__(source)
        self._rules = ImageCaptionConfig(caption_cleaning=self._cleaning, min_image_size=1)
        self.num_rows = self.num_rows or self._published
        self._bytes_read = 0  # of the images of the unit in work

    @property
    def name(self) -> str:  # type: ignore[override]
        return Path(self.source.dataset).name

    @property
    def image_column(self) -> str:  # type: ignore[override]
        return self.source.image_column

    @property
    def _cleaning(self) -> str:
        return self.source.caption_cleaning or "light"

    def _options(self) -> dict[str, Any]:
        source = self.source
        self._caption_files = CaptionFiles(source.captions, source.captions_order, [CAPTION_KIND])
        self.joined = self._caption_files.joined
        return {}

    def _checked(self, dataset: Any) -> Any:
        self._arguments = {} if self.source.prepare else dataset._ex_iterable.kwargs
        dataset = dataset if self.source.prepare else self._typed(dataset)
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
        return dataset

    def _typed(self, dataset: Any) -> Any:
        """The dataset with the types of its columns, which a stream of CSV or JSON only knows by its first rows. Raises UsageError."""
        try:
            return dataset._resolve_features()
        except StopIteration:
            raise UsageError(f"{self.source.dataset}: split {self.source.split} has no rows") from None

    def _identify_sources(self, builder: Any) -> str | None:
        """A hash of the names of local files, and where rows of one may come to stand in another unit of their sizes; None for the
        Hub's, whose commit is in the recipe."""
        source, published = self.source, builder.info.splits or {}
        # What its publisher says of the split; options may name a part of it.
        whole = not source.options and source.data_dir is None and source.split in published
        self._published = (published[source.split].num_examples or None) if whole else None
        by_split = builder.config.data_files or {}
        self._data_files = by_split.get(source.split, ())
        elsewhere = [path for split, paths in by_split.items() if split != source.split for path in paths]
        self._holds_images = isinstance(builder, FolderBasedBuilder)
        # A format that `datasets` brings, as json, is no folder of that name.
        is_format = source.dataset in _PACKAGED_DATASETS_MODULES
        folder = source.data_dir or (None if is_format else Path(source.dataset))
        files = LocalFiles(folder, self._data_files, elsewhere)
        self._files, self._by_shard = files.paths, None if source.prepare else files.by_shard(self._arguments)
        return files.identity(with_sizes=source.limit is not None or self._by_shard is None)

    def files(self, unit: Unit) -> Sequence[str]:
        """Local files that a unit is read from: all of them, where `datasets` does not say which."""
        return self._files if self._by_shard is None else self._by_shard[unit.shard]

    def _recipe(self, builder: Any) -> dict[str, Any]:
        source = self.source
        local = Path(source.dataset).exists()
        commit = re.search(r"@([0-9a-f]{40})", builder.base_path or "")
        return {
            "path": Path(source.dataset).name if local else source.dataset,
            "name": builder.config.name,
            "revision": commit[1] if commit else None,
            "options": sorted(portable(option) for option in source.options),
            "image_column": source.image_column,
            "caption_column": source.caption_column,
            "caption_cleaning": self._cleaning,
            **self._caption_files.recipe,
        }

    def _record(self, values: dict[str, Any], unit: Unit, number: int) -> Record:
        source = self.source
        kept = {
            name: v for name, v in values.items() if name not in (source.image_column, source.caption_column)
        }
        name = self._public(str(values.get("__url__") or self._file(values) or source.dataset))
        kept |= {"__url__": name} if "__url__" in kept else {}
        key, extras = unit_key(unit, number, values), jsonable(kept)
        raw = values[source.caption_column]
        own = raw if isinstance(raw, list) else [raw]
        joined = self._caption_files.find(key, name, extras)
        texts, kinds = merge(own, [CAPTION_KIND] * len(own), joined, self._caption_files.order)
        row = SourceRow(key, image_bytes(values[source.image_column]), texts, name, extras, kinds=kinds)
        record = judge(row, self._rules, CAPTION_KIND, decoded_later=True)
        return replace(record, share=self._share(values, row.image, number))

    def _share(self, values: dict[str, Any], image: bytes | None, number: int) -> float | None:
        """How much of a unit was read with its row `number`, by the bytes of its images; None where they lie in other files."""
        if not self._unit_bytes or not (self._holds_images or (values[self.image_column] or {}).get("bytes")):
            return None
        self._bytes_read = (self._bytes_read if number > 1 else 0) + len(image or b"")
        return min(self._bytes_read / self._unit_bytes, 1.0)

    @cached_property
    def _unit_bytes(self) -> float | None:
        """Bytes of a unit's files, on average: of all units together what was read is right."""
        size = None if self.num_rows else bytes_of([str(path) for path in self._data_files])
        return size / len(self.units) if size and self.units else None

    def _file(self, values: dict[str, Any]) -> str | None:
        """The file of the image, where captions are joined by it: other rows have no source of their own."""
        by_file = any(file.joined_by == "source" for file in self.joined)
        return (values[self.source.image_column] or {}).get("path") if by_file else None

    def _public(self, place: str) -> str:
        """A file as others may read of it: below the folder's name, where it lies in a folder of this machine."""
        folder = (self.source.data_dir or Path(self.source.dataset)).absolute()
        if "://" in place or not folder.exists():
            return printable(place)
        path = Path(place).absolute()
        inside = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        return (Path(folder.name) / inside).as_posix()

    def _complaint(self, error: BaseException) -> str:
        message, dataset = innermost(error), self.source.dataset
        return message if message.startswith(dataset) else f"{dataset}: {message}"
