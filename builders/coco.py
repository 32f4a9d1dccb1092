"""MS-COCO captions: photographs of everyday scenes, five captions each.

    load_dataset("builders/coco")                  # 2014: train 82,783, validation 40,504
    load_dataset("builders/coco", "2017")          # the same photographs, split 118,287 / 5,000
    load_dataset("builders/coco", "karpathy")      # train + restval 113,287, validation 5,000, test 5,000
    load_dataset("builders/coco", "small")         # the first hundredth of 2014

Captions are grouped by image id and ordered by annotation id; some images have six or seven.
"""

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

_URL = "http://images.cocodataset.org/"  # no https: the certificate does not cover the bucket's name
_TRAIN2014 = Source("train2014.zip", _URL + "zips/train2014.zip", size=13_510_573_713, members=82_784)
_VAL2014 = Source("val2014.zip", _URL + "zips/val2014.zip", size=6_645_013_297, members=40_505)
_TRAIN2017 = Source("train2017.zip", _URL + "zips/train2017.zip", members=118_288)
_VAL2017 = Source("val2017.zip", _URL + "zips/val2017.zip", members=5_001)
_CAPTIONS2014 = Source(
    "annotations_trainval2014.zip", _URL + "annotations/annotations_trainval2014.zip", size=252_872_794
)
_CAPTIONS2017 = Source("annotations_trainval2017.zip", _URL + "annotations/annotations_trainval2017.zip")
_KARPATHY = Source(
    "caption_datasets.zip", "http://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
)
_KARPATHY_SPLITS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}


class Coco(ArchiveBuilder):
    DESCRIPTION = "Photographs of everyday scenes with five human captions each."
    HOMEPAGE = "https://cocodataset.org"
    LICENSE = "annotations CC BY 4.0; images under their Flickr licences"
    CAPTION_KIND = "human"
    BUILDER_CONFIG_CLASS = SlicedConfig
    BUILDER_CONFIGS: ClassVar = [
        SlicedConfig(name="2014", version=ArchiveBuilder.VERSION),
        SlicedConfig(name="2017", version=ArchiveBuilder.VERSION),
        SlicedConfig(name="karpathy", version=ArchiveBuilder.VERSION),
        SlicedConfig(name="small", version=ArchiveBuilder.VERSION, first_slice_of=100),
    ]
    DEFAULT_CONFIG_NAME = "2014"
    EXTRAS: ClassVar = {"image_id": datasets.Value("int64")}

    def _sources(self) -> dict[str, SplitSources]:
        if self.config.name == "karpathy":
            table = {"captions": _KARPATHY}
            both = SplitSources([_TRAIN2014, _VAL2014], table)
            return {
                "train": both,
                "validation": SplitSources([_VAL2014], table),
                "test": SplitSources([_VAL2014], table),
            }
        train, val, captions = (
            (_TRAIN2017, _VAL2017, _CAPTIONS2017)
            if self.config.name == "2017"
            else (_TRAIN2014, _VAL2014, _CAPTIONS2014)
        )
        return {
            "train": SplitSources([train], {"captions": captions}),
            "validation": SplitSources([val], {"captions": captions}),
        }

    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        archive = _stem(shard)
        join = self._captions(shard)
        for member in self._members(shard):
            name = stem(member.name)
            split, image_id, captions = join.get(archive, name) or ("train", None, None)
            if split in (shard.split, None):
                source = f"{shard.path}/{member.name}"
                yield SourceRow(
                    make_key(name), member.read(), captions or None, source, {"image_id": image_id}
                )
        if shard.is_last:
            with open_file(shard.location, self.token) as file:
                present = {stem(entry) for entry in zip_names(file)}
            for name, (split, image_id, captions) in join.items(archive, but=present):
                if split in (shard.split, None):
                    yield SourceRow(make_key(name), None, captions, shard.path, {"image_id": image_id})

    def _captions(self, shard: ArchiveShard) -> Join:
        """Give by archive and stem the split, None where the archive says it, the image id and the captions."""
        location = shard.tables["captions"]
        if self.config.name == "karpathy":
            return self._join(location, lambda: _karpathy(location, self.token))
        archive = _stem(shard)
        return self._join(location, lambda: _captions(location, self.token, archive), scope=archive)

    def _absent(self, shards: list[ArchiveShard]) -> int:
        if self.config.name != "karpathy":
            return 0
        join, read = self._captions(shards[0]), {_stem(shard) for shard in shards}
        absent = (join.items(archive) for archive in join.counts() if archive not in read)
        return sum(split == shards[0].split for items in absent for _, (split, _, _) in items)


def _stem(shard: ArchiveShard) -> str:
    return shard.path.removesuffix(".zip")


def _captions(location: str, token: Any, archive: str) -> Iterator[tuple[str, str, Any]]:
    """Join lists of images and of annotations, neither in the order of the other."""

    def facts() -> Iterator[tuple[int, int | None, str]]:
        for key, item in read_document(location, token, f"captions_{archive}.json"):
            if key == "images":
                yield item["id"], None, stem(item["file_name"])
            elif key == "annotations":
                yield item["image_id"], item["id"], item["caption"]

    for image_id, found in sort_by_name(facts()):
        name = next((text for rank, text in found if rank is None), f"{image_id:012d}")
        yield archive, name, (None, image_id, [text for rank, text in found if rank is not None])


def _karpathy(location: str, token: Any) -> Iterator[tuple[str, str, Any]]:
    splits = {name: split for split, names in _KARPATHY_SPLITS.items() for name in names}
    for _, image in read_document(location, token, "dataset_coco.json"):
        sentences = sorted(image["sentences"], key=lambda sentence: sentence["sentid"])
        captions = [sentence["raw"] for sentence in sentences]
        yield image["filepath"], stem(image["filename"]), (splits[image["split"]], image["cocoid"], captions)
