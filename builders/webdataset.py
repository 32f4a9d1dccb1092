"""Any WebDataset or img2dataset tars of images and captions, yours or the Hub's.

    load_dataset("builders/webdataset", data_dir="tars")                                        # every *.tar under it
    load_dataset("builders/webdataset", data_files="hf://datasets/USER/SET/data/*.tar", streaming=True)
    load_dataset("builders/webdataset", data_dir="tars", caption_field="json.prompt", image_field="png")

Members of a sample share their name up to the first dot and lie side by side. Sub-folders train, validation and test are splits.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets

from builders.archives.member import NoContent
from builders.archives.members import first_of, group_by_key, is_hidden, read_facts
from builders.archives.remote import is_local
from builders.archives.sources import ArchiveBuilder, ArchiveShard, Source, SplitSources
from builders.core.account import Left
from builders.core.base import make_key
from builders.core.captions import whole
from builders.core.config import ImageCaptionConfig
from builders.core.errors import ConfigError, MissingSourceError
from builders.core.listing import walk_files
from builders.core.log import logger
from builders.core.record import SourceRow
from builders.core.text_file import check_encoding, decode_text
from builders.folder import IMAGES, SPLITS

_IMAGES = tuple(suffix[1:] for suffix in IMAGES)
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_TOPS = {name: split for split, names in SPLITS.items() for name in names}
_CAPTIONS = ("txt", "caption", "json.caption", "json.prompt", "json.text")


@dataclass
class WebdatasetConfig(ImageCaptionConfig):
    """image_field      extension of the image; default: the first there is of jpg, jpeg, png, webp, ...
    caption_field    extension of the caption, or json.FIELD; default: txt, caption, json.caption, json.prompt or json.text
    caption_encoding    of caption files without a byte order mark: "gbk", "cp1252", ...; default UTF-8
    """

    image_field: str | None = None
    caption_field: str | None = None
    caption_encoding: str | None = None

    def check(self) -> None:
        super().check()
        check_encoding("caption_encoding", self.caption_encoding)


class Webdataset(ArchiveBuilder):
    DESCRIPTION = "Images and captions in WebDataset tars."
    BUILDER_CONFIG_CLASS = WebdatasetConfig
    EXTRAS: ClassVar = {"json": datasets.Value("string")}
    _others: Sequence[str] = ()  # files of data_dir that are no archives

    def identity(self, shards: list[ArchiveShard]) -> str:
        """Add what tells one 00000.tar from another: where a remote one comes from, how a local one begins."""
        first = shards[0].location
        return super().identity(shards) + (_beginning(first) if is_local(first) else _published(first))

    def _sources(self) -> dict[str, SplitSources]:
        splits = self._listed() if self.config.data_files is None else self._given()
        if not any(splits.values()):
            raise MissingSourceError(
                f"builders/webdataset: data_dir={self.config.data_dir!r} holds no archive. Looked for *.tar"
            )
        return {split: SplitSources(archives) for split, archives in splits.items() if archives}

    def _given(self) -> dict[str, list[Source]]:
        if self.config.data_dir is not None:
            raise ConfigError("builders/webdataset: pass data_dir or data_files, not both")
        files = {str(split): list(urls) for split, urls in self.config.data_files.items()}
        every = [_published(url) for urls in files.values() for url in urls]
        folder = os.path.commonprefix(every).rpartition("/")[0] + "/"  # noqa: RUF071  commonpath would mend the // of a URL
        return {
            split: [Source(_published(url).removeprefix(folder), url) for url in urls]
            for split, urls in files.items()
        }

    def _listed(self) -> dict[str, list[Source]]:
        root = self.config.data_dir
        if root is None:
            raise MissingSourceError(
                "builders/webdataset: pass data_dir=FOLDER or data_files=PATTERN, which name your *.tar"
            )
        splits: dict[str, list[Source]] = {split: [] for split in SPLITS}
        others = []
        for path in walk_files(root):
            if path.lower().endswith(_ARCHIVES) and not is_hidden(path):
                splits[_TOPS.get(path.split("/")[0], "train")].append(Source(path, ""))
            else:
                others.append(path)
        self._others = others
        return splits

    def _left_beside(self, split: str) -> Mapping[str, Left]:
        first = next(iter(self._by_split))
        here = [path for path in self._others if _TOPS.get(path.partition("/")[0], first) == split]
        return {**super()._left_beside(split), "no_archive": Left.of(here)}

    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        config = self.config
        archive = _stem(shard.path)
        images = _IMAGES if config.image_field is None else (config.image_field.lower(),)
        fields = _CAPTIONS if config.caption_field is None else (_lower(config.caption_field),)
        advice = _Advice(shard.path)
        for name, parts in group_by_key(self._members(shard)):
            facts = read_facts(parts)
            image = first_of(parts, images)
            captions, reject = None, None
            try:
                captions = next(
                    (found for field in fields if (found := self._captions(field, parts, facts))), None
                )
            except ValueError:
                reject = "unreadable_text"
            if any(isinstance(part, NoContent) for part in (image, parts.get("txt"))):
                reject = "unreadable"
            advice.look(name, parts, image is not None, captions is not None)
            extras = {"json": whole(json.dumps(facts, ensure_ascii=False)) if facts else None}
            yield SourceRow(
                make_key(f"{archive}-{name}"), image, captions, f"{shard.path}/{name}", extras, reject
            )

    def _captions(self, field: str, parts: dict[str, bytes], facts: dict[str, Any]) -> list[object]:
        """The values of a field. Raises ValueError where its text is in another encoding."""
        kind, _, key = field.partition(".")
        if kind == "json" and key:
            value = facts.get(key)
            return [] if value is None else value if isinstance(value, list) else [value]
        return [decode_text(parts[field], self.config.caption_encoding)] if field in parts else []


class _Advice:
    """Tells once of an archive what keeps its members from being samples, and the cure."""

    def __init__(self, path: str) -> None:
        self._path, self._told = path, set[str]()
        self._incomplete: dict[str, bool] = {}

    def look(self, name: str, fields: Iterable[str], has_image: bool, has_caption: bool) -> None:
        """`name` is a sample's, as it was read, `fields` the extensions of its members."""
        if has_image and has_caption:
            return
        lacking = (() if has_image else _IMAGES) + (() if has_caption else ("txt", "caption"))
        dotted = next(
            (field for field in fields if field.endswith(tuple(f".{kind}" for kind in lacking))), None
        )
        if dotted is not None:
            self._tell(
                "has dots in names",
                f"{name}.{dotted} is {dotted!r} of {name!r}, for a sample's name ends at its first dot: rename its files, or name "
                "the fields with image_field=... and caption_field=...",
            )
        elif self._incomplete.setdefault(name, has_image) != has_image:
            self._tell(
                "is not sorted",
                f"the members of {name!r} lie apart: unpack it and pack it with tar --sort=name",
            )

    def _tell(self, what: str, more: str) -> None:
        if what not in self._told:
            logger.warning(f"webdataset: {self._path} {what}, {more}")
        self._told.add(what)


def _stem(path: str) -> str:
    """Cut the suffix off: `.tar` alone may not be the key's, a packed one keeps apart from its namesake."""
    return path[: -len(".tar")] if path.endswith(".tar") else path


def _lower(field: str) -> str:
    """Extensions are compared in lower case; the name of a JSON field is not."""
    kind, dot, key = field.partition(".")
    return field if dot and kind.lower() == "json" and key else field.lower()


def _published(url: str) -> str:
    """Cut the query off: it may be a signature, which lives for some days and is nobody's to read in a key."""
    return url if is_local(url) else url.partition("?")[0]


def _beginning(path: str) -> str:
    """The first header, hashed: name, size and time of the first member. The same for a tar that is cut short."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read(512)).hexdigest()
    except OSError:  # reading the tar will say so, and count it
        return ""
