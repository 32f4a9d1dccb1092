"""TextCaps: photographs with text in them, five captions each that read it.

    load_dataset("builders/textcaps")                        # train 21,953, validation 3,166
    load_dataset("builders/textcaps", "small")               # the first hundredth of the images

One zip holds the images of both splits; an image belongs to the split whose annotations name it, and to train where none do. The
test split has no captions.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, ClassVar

import datasets

from builders.archives.documents import read_document
from builders.archives.members import stem
from builders.archives.remote import open_file
from builders.archives.sources import ArchiveBuilder, ArchiveShard, Source, SplitSources
from builders.archives.zips import zip_names
from builders.core.annotation_db import Join, sort_by_name
from builders.core.base import make_key
from builders.core.config import SlicedConfig
from builders.core.record import SourceRow

_URL = "https://dl.fbaipublicfiles.com/textvqa/"
_IMAGES = Source("train_val_images.zip", _URL + "images/train_val_images.zip", members=25_120)
_TRAIN = Source("TextCaps_0.1_train.json", _URL + "data/textcaps/TextCaps_0.1_train.json")
_VAL = Source("TextCaps_0.1_val.json", _URL + "data/textcaps/TextCaps_0.1_val.json")
_TEST, _NUM_TEST = "TextCaps_0.1_test.json", 3289  # without captions
_KEPT = ("caption_str", "reference_strs", "image_classes", "flickr_original_url")


class Textcaps(ArchiveBuilder):
    DESCRIPTION = "Photographs that contain text, with five captions each that read it."
    HOMEPAGE = "https://textvqa.org/textcaps"
    LICENSE = "annotations CC BY 4.0; images CC BY 2.0, by their authors (Open Images)"
    CAPTION_KIND = "human"
    BUILDER_CONFIG_CLASS = SlicedConfig
    BUILDER_CONFIGS: ClassVar = [
        SlicedConfig(name="default", version=ArchiveBuilder.VERSION),
        SlicedConfig(name="small", version=ArchiveBuilder.VERSION, first_slice_of=100),
    ]
    DEFAULT_CONFIG_NAME = "default"
    EXTRAS: ClassVar = {
        "image_classes": datasets.List(datasets.Value("string")),
        "flickr_original_url": datasets.Value("string"),
    }

    def _sources(self) -> dict[str, SplitSources]:
        return {
            "train": SplitSources([_IMAGES], {"captions": _TRAIN, "others": _VAL}),
            "validation": SplitSources([_IMAGES], {"captions": _VAL}),
        }

    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        joins = {name: self._captions(location) for name, location in shard.tables.items()}
        join, others = joins["captions"], joins.get("others")
        for member in self._members(shard):
            image_id = stem(member.name)
            found = join.get("", image_id)
            if found is not None or (others is not None and others.get("", image_id) is None):
                captions, extras = found or ((), {})
                source = f"{shard.path}/{member.name}"
                yield SourceRow(make_key(image_id), member.read(), captions or None, source, extras)
        if shard.is_last:
            with open_file(shard.location, self.token) as file:
                present = {stem(name) for name in zip_names(file)}
            for image_id, (captions, extras) in join.items("", but=present):
                yield SourceRow(make_key(image_id), None, captions, shard.path, extras)

    def _captions(self, location: str) -> Join:
        return self._join(location, lambda: _captions(location, self.token))

    def _uncaptioned(self) -> int:
        path = os.path.join(self.config.data_dir or "", _TEST)
        if self.config.data_dir is None or not os.path.isfile(path):
            return _NUM_TEST
        return len({row["image_id"] for _, row in read_document(path, None)})


def _captions(location: str, token: Any) -> Iterator[tuple[str, str, Any]]:
    """Captions, in the order of their ids, and extras by image id; the file has a row for each caption, in no order."""

    def rows() -> Iterator[tuple[str, int, str]]:
        for _, row in read_document(location, token):
            yield (
                row["image_id"],
                row.get("caption_id") or 0,
                json.dumps({name: row.get(name) for name in _KEPT}),
            )

    for image_id, found in sort_by_name(rows()):
        texts = [json.loads(text) for _, text in found]
        captions = [row["caption_str"] for row in texts if row["caption_str"]]
        for row in texts:  # references that have no row of their own
            captions += [text for text in row["reference_strs"] or [] if text not in captions]
        yield "", image_id, (captions, {name: texts[0][name] for name in Textcaps.EXTRAS})
