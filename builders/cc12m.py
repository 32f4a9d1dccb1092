"""Conceptual 12M: web images with the alt text they carried, as the img2dataset tars of `pixparse/cc12m-wds`.

    load_dataset("builders/cc12m", streaming=True)           # 10,968,539 images in 2,176 tars
    load_dataset("builders/cc12m", "small")                  # the first 23 tars, about 1 %
    load_dataset("builders/cc12m", parts="0-9,2175")

Alt text is noisy, so the default cleaning is `deepfloyd`. The publisher shrank images to a shorter edge of 512 at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import datasets

from builders.archives.members import first_of, group_by_key, read_facts
from builders.archives.sources import ArchiveBuilder, ArchiveShard, Source, SplitSources, hub_url
from builders.core.base import make_key
from builders.core.config import NumberedConfig, parse_parts
from builders.core.record import SourceRow
from builders.core.text_file import decode_text

_REPOSITORY = "pixparse/cc12m-wds"
_IMAGES = ("jpg", "jpeg", "png", "webp")
_EXTRAS = {"url": "string", "original_width": "int32", "original_height": "int32"}


@dataclass
class Cc12mConfig(NumberedConfig):
    caption_cleaning: str = "deepfloyd"


class Cc12m(ArchiveBuilder):
    DESCRIPTION = "Conceptual 12M: web images with their alt text."
    HOMEPAGE = "https://github.com/google-research-datasets/conceptual-12m"
    LICENSE = "annotations: free for any purpose, acknowledgement of Google LLC appreciated; images belong to their owners"
    CAPTION_KIND = "alt"
    BUILDER_CONFIG_CLASS = Cc12mConfig
    BUILDER_CONFIGS: ClassVar = [
        Cc12mConfig(name="default", version=ArchiveBuilder.VERSION),
        Cc12mConfig(name="small", version=ArchiveBuilder.VERSION, parts="0-22"),
    ]
    DEFAULT_CONFIG_NAME = "default"
    EXTRAS: ClassVar = {name: datasets.Value(kind) for name, kind in _EXTRAS.items()}

    def _sources(self) -> dict[str, SplitSources]:
        names = [f"cc12m-train-{part:04d}.tar" for part in parse_parts(self.config.parts, range(2176))]
        return {"train": SplitSources([Source(name, hub_url(_REPOSITORY, name)) for name in names])}

    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        part = shard.path.removesuffix(".tar").rpartition("-")[2]
        for name, parts in group_by_key(self._members(shard)):
            facts = read_facts(parts)
            caption, reject = facts.get("caption"), None
            try:
                caption = decode_text(parts["txt"]) if "txt" in parts else caption
            except ValueError:
                reject = "unreadable_text"
            yield SourceRow(
                make_key(f"{part}-{name}"),
                first_of(parts, _IMAGES),
                None if caption is None else [caption],
                f"{shard.path}/{name}",
                {column: facts.get(column) for column in _EXTRAS},
                reject,
            )
