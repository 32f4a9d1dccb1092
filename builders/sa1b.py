"""SA-1B: large licensed photographs (1,500 pixels on the shorter edge), captioned by LLaVA.

    load_dataset("builders/sa1b", data_dir="raw/sa1b")                   # the sa_*.tar and SA1B_caption.tar.gz that are there
    load_dataset("builders/sa1b", links="links.txt", parts="20-22")      # Meta's list of links, as you got it for your acceptance

11,185,362 images in 1,000 tars of 10.5 GB; about one in ten has no caption. Meta's links expire after some days. The captions are ten
million files of another archive in another order, so the first use joins them on disk.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from builders.archives.member import Member
from builders.archives.members import iter_members, stem
from builders.archives.read_errors import describe
from builders.archives.remote import open_file
from builders.archives.sources import ArchiveBuilder, ArchiveShard, Source, SplitSources, hub_url
from builders.core.base import make_key
from builders.core.config import NumberedConfig, parse_parts
from builders.core.errors import MissingSourceError, RefusedError
from builders.core.record import SourceRow
from builders.core.text_file import decode_text

LICENSE_PAGE = "https://ai.meta.com/datasets/segment-anything-downloads/"
CAPTIONS = Source("SA1B_caption.tar.gz", hub_url("PixArt-alpha/SAM-LLaVA-Captions10M", "SA1B_caption.tar.gz"))
_ARCHIVE = re.compile(r"sa_(\d+)\.tar")
_NUM_SMALL = 10


@dataclass
class Sa1bConfig(NumberedConfig):
    """links    path of Meta's list of download links; not needed for the tars that are in data_dir"""

    links: str | None = None


class Sa1b(ArchiveBuilder):
    DESCRIPTION = "Segment Anything's photographs with LLaVA captions."
    HOMEPAGE = "https://ai.meta.com/datasets/segment-anything"
    LICENSE = "images: SA-1B research licence, no commercial use, no redistribution; captions: OpenRAIL"
    CAPTION_KIND = "llava"
    DEFAULT_WRITER_BATCH_SIZE = 16  # photographs of 1 to 2 MB
    BUILDER_CONFIG_CLASS = Sa1bConfig
    BUILDER_CONFIGS: ClassVar = [
        Sa1bConfig(name="default", version=ArchiveBuilder.VERSION),
        Sa1bConfig(name="small", version=ArchiveBuilder.VERSION),
    ]
    DEFAULT_CONFIG_NAME = "default"

    def _sources(self) -> dict[str, SplitSources]:
        urls = self._urls()
        numbers = {int(match[1]): name for name in urls if (match := _ARCHIVE.fullmatch(name))}
        chosen = parse_parts(self.config.parts, numbers)
        if self.config.name == "small":
            chosen = chosen[:_NUM_SMALL]
        archives = [Source(numbers[number], urls[numbers[number]]) for number in chosen]
        return {"train": SplitSources(archives, {"captions": CAPTIONS})}

    def _urls(self) -> dict[str, str]:
        """Links by archive name; without links, the archives in data_dir."""
        if self.config.links is not None:
            return read_links(self.config.links)
        root = self.config.data_dir
        if root is None:
            raise MissingSourceError(
                f"builders/sa1b: accept Meta's licence at {LICENSE_PAGE}, save the list of links it gives you, and pass "
                "links=PATH; or data_dir=FOLDER with sa_000000.tar, ... and SA1B_caption.tar.gz"
            )
        names = [name for name in os.listdir(root) if _ARCHIVE.fullmatch(name)] if os.path.isdir(root) else []
        return dict.fromkeys(names or ["sa_000000.tar"], "")

    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        captions = self._join(shard.tables["captions"], lambda: self._captions(shard.tables["captions"]))
        images, masks = set(), set()
        for member in self._members(shard):
            name = stem(member.name)
            if member.name.lower().endswith(".json"):
                masks.add(name)  # never read: several times what the caption task needs
                continue
            images.add(name)
            found = captions.get("", name)
            reject = "unreadable_text" if found == [] else None
            yield SourceRow(
                make_key(name), member.read(), found, f"{shard.path}/{member.name}", reject=reject
            )
        for name in sorted(masks - images):
            yield SourceRow(make_key(name), None, None, f"{shard.path}/{name}.json")

    def _members(self, shard: ArchiveShard) -> Iterator[Member]:
        try:
            yield from super()._members(shard)
        except RefusedError as error:
            raise RefusedError(f"{shard.path}: {expired(describe(error))} links=PATH") from error

    def _captions(self, location: str) -> Iterator[tuple[str, str, Any]]:
        with open_file(location, self.token) as file:
            for member in iter_members(file):
                if member.name.endswith(".txt"):
                    yield "", stem(member.name), _texts(member.read())


def _texts(data: bytes) -> list[str]:
    """The caption, or none where it is in another encoding than UTF-8."""
    try:
        return [decode_text(data)]
    except ValueError:
        return []


def expired(what: str) -> str:
    """The cure for links that are refused, up to the option that takes the new ones."""
    return f"{what}: Meta's links have expired, they last some days. Get a fresh list at {LICENSE_PAGE} and run again with"


def read_links(path: str) -> dict[str, str]:
    """Links by archive name from Meta's list: tab-separated, in no order, with a header. Raises MissingSourceError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            rows = [line.split() for line in file]
    except FileNotFoundError:
        raise MissingSourceError(
            f"links={path!r}: no such file; save Meta's list from {LICENSE_PAGE}"
        ) from None
    links = {row[0]: row[1] for row in rows if len(row) == 2 and _ARCHIVE.fullmatch(row[0])}
    if not links:
        raise MissingSourceError(f"links={path!r}: no line of the form sa_000020.tar<TAB>https://... in it")
    return dict(sorted(links.items()))
