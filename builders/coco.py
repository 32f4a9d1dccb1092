"""MS-COCO captions: photographs of everyday scenes, five captions each.

    load_dataset("builders/coco")                  # 2014: train 82,783, validation 40,504
    load_dataset("builders/coco", "2017")          # the same photographs, split 118,287 / 5,000
    load_dataset("builders/coco", "karpathy")      # train + restval 113,287, validation 5,000, test 5,000
    load_dataset("builders/coco", "small")         # the first hundredth of 2014

Captions are grouped by image id and ordered by annotation id; some images have six or seven.
"""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import datasets

from .archives import iter_members, stem
from .base import Row, make_key
from .errors import ArchiveError
from .remote import open_source
from .sources import ArchiveBuilder, Shard, SlicedConfig, Source, SplitSources
from .zips import zip_names

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

    def _read(self, shard: Shard) -> Iterator[Row]:
        archive = shard.path.removesuffix(".zip")
        load = _load_karpathy if self.config.name == "karpathy" else _load_captions
        table = load(shard.tables["captions"], archive, self.token, self.config.data_fingerprint)
        for member in self._members(shard):
            name = stem(member.name)
            image = table.get(name, _Image("train", None, ()))
            if image.split in (shard.split, None):
                captions = image.captions or None
                yield Row(
                    make_key(name),
                    member.read(),
                    captions,
                    f"{shard.path}/{member.name}",
                    {"image_id": image.id},
                )
        if shard.is_last:
            with open_source(shard.location, self.token) as file:
                present = {stem(entry) for entry in zip_names(file)}
            for name, image in table.items():
                if name not in present and image.split in (shard.split, None):
                    yield Row(make_key(name), None, image.captions, shard.path, {"image_id": image.id})


class _Image(NamedTuple):
    """What the annotations say of one image; `split` is None where the archive says it."""

    split: str | None
    id: int | None
    captions: Sequence[str]


@functools.lru_cache(maxsize=2)
def _load_captions(location: str, archive: str, token: Any, fingerprint: str | None) -> dict[str, _Image]:
    """Captions by stem. `fingerprint` is no input; it makes changed files a different call."""
    names: dict[int, str] = {}
    captions: dict[int, list[tuple[int, str]]] = {}

    def take(item: dict[str, Any]) -> None:  # as each is read: the tree of all would be three times as large
        if "caption" in item:
            captions.setdefault(item["image_id"], []).append((item["id"], item["caption"]))
        elif "file_name" in item:
            names[item["id"]] = stem(item["file_name"])

    _read_json(location, f"captions_{archive}.json", token, take)
    return {
        names.get(id) or f"{id:012d}": _Image(
            None, id, tuple(caption for _, caption in sorted(captions.get(id, ())))
        )
        for id in names | captions
    }


@functools.lru_cache(maxsize=2)
def _load_karpathy(location: str, archive: str, token: Any, fingerprint: str | None) -> dict[str, _Image]:
    tree = _read_json(location, "dataset_coco.json", token)
    splits = {name: split for split, names in _KARPATHY_SPLITS.items() for name in names}
    return {
        stem(image["filename"]): _Image(
            splits[image["split"]],
            image["cocoid"],
            tuple(
                sentence["raw"]
                for sentence in sorted(image["sentences"], key=lambda sentence: sentence["sentid"])
            ),
        )
        for image in tree["images"]
        if image["filepath"] == archive
    }


def _read_json(location: str, name: str, token: Any, object_hook: Any = None) -> Any:
    with open_source(location, token) as file:
        for member in iter_members(file):
            if os.path.basename(member.name) == name:
                return json.loads(member.read(), object_hook=object_hook)
    raise ArchiveError(f"{location} has no {name}")
