"""Records of our own datasets, whose builders judge each row and say so in `reject`."""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

import builders  # noqa: F401  registers "builders/<name>" with datasets
from builders.core.record import COLUMNS, Record
from precompute.errors import UsageError
from precompute.input.caption_files import JOINED
from precompute.input.faults import innermost
from precompute.input.options import captions_options
from precompute.input.records import Records
from precompute.input.row_values import image_bytes, jsonable, short_hash
from precompute.input.units import Unit

# Fields of a builder's config that determine no value; `links` is where the archives are for some days. What `check_pixels`
# finds, the decoder of a run finds too.
NO_VALUE = {
    "name",
    "version",
    "data_dir",
    "data_files",
    "description",
    "parts",
    "check_pixels",
    "keep_rejected",
    "data_fingerprint",
    "captions_from",
    "captions_order",
    "captions_sha256",
    "links",
}
# Of them, those that the command sets by flags of its own.
KNOWN = frozenset((*COLUMNS, "reject"))  # what is no extra
SET_BY_FLAGS = NO_VALUE - {"parts", "links", "check_pixels"}


class OurRecords(Records):
    """The records of `builders/NAME`, of ours or of an installed package."""

    readers_wait = True
    image_column = "image"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.source.dataset

    def _options(self) -> dict[str, Any]:
        source = self.source
        if (source.image_column, source.caption_column) != ("image", "caption"):
            raise UsageError(
                f"--image-column, --caption-column: {source.dataset} has its own; leave them out"
            )
        cleaning = {"caption_cleaning": source.caption_cleaning} if source.caption_cleaning else {}
        return {"keep_rejected": True, **cleaning, **captions_options(source.captions, source.captions_order)}

    def _checked(self, dataset: Any) -> Any:
        return dataset

    def _identify_sources(self, builder: Any) -> str | None:
        """A hash of what makes up each shard, wherever it lies."""
        stream = builder.as_streaming_dataset(split=self.source.split)
        self._builder, self._shards = builder, stream._ex_iterable.kwargs["shards"]
        self.joined = builder.joined_captions()
        return short_hash(builder.identity(self._shards))

    def left_out(self, unit: Unit) -> Mapping[str, int]:
        """Count what is left out: of a dataset that is prepared all of it with the first unit, and none of a unit that --limit cuts."""
        split = self.source.split
        if self.source.prepare:
            left = self._builder.account(split).left if unit.index == 0 else {}
        else:
            left = self._builder.left_out(split, self._shards[unit.shard]) if unit.stop is None else {}
        return {reason: files for reason, (files, _) in left.items() if files}

    def files(self, unit: Unit) -> Sequence[str]:
        """Local files that a unit is read from, as far as its builder knows them; of a prepared dataset, whose rows are of no one
        file, all of them."""
        known = getattr(self._builder, "files", None)
        if not known:
            return ()
        return self._prepared_from if self.source.prepare else known(self._shards[unit.shard])

    @functools.cached_property
    def _prepared_from(self) -> list[str]:
        return [path for shard in self._shards for path in self._builder.files(shard)]

    def _recipe(self, builder: Any) -> dict[str, Any]:
        config = {
            field.name: getattr(builder.config, field.name)
            for field in dataclasses.fields(builder.config)
            if field.name not in NO_VALUE
        }
        return {
            "path": self.source.dataset,
            "name": builder.config.name,
            "version": str(builder.info.version),
            **json.loads(json.dumps(config, default=str)),
            **_joined(builder.config),
        }

    def _record(self, values: dict[str, Any], unit: Unit, number: int) -> Record:
        extras = {name: value for name, value in values.items() if name not in KNOWN and value is not None}
        record = Record.of_columns(values, image_bytes(values["image"]), jsonable(extras))
        return dataclasses.replace(record, share=self._builder.share_read)

    def _complaint(self, error: BaseException) -> str:
        message, dataset = innermost(error), self.source.dataset
        unknown = re.search(r"(?:doesn't have a|unexpected keyword argument) '(\w+)'", message)
        if unknown:
            return self._no_such_option(unknown[1])
        return message if message.startswith(dataset) else f"{dataset}: {message}"

    def _no_such_option(self, name: str) -> str:
        config = datasets.load_dataset_builder(self.source.dataset, self.source.name).config
        fields = {field.name for field in dataclasses.fields(config)} - SET_BY_FLAGS
        return f"--options {name}=...: {self.source.dataset} has no such option; it has {', '.join(sorted(fields))}"


def _joined(config: Any) -> dict[str, Any]:
    """What the recipe says of captions from elsewhere: the files by their contents, and whether they come first."""
    if not config.captions_from:
        return {}
    return {JOINED: {"order": config.captions_order, "sha256": config.captions_sha256}}
