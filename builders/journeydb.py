"""JourneyDB: images that people made with Midjourney, with their prompts and GPT-3.5's captions of them.

    load_dataset("builders/journeydb", parts="0-1")                            # of 200 tgz a split; gated, needs a token
    load_dataset("builders/journeydb", caption_field="caption")                # the sentence instead of the prompt
    load_dataset("builders/journeydb", "small")                                # the first two tgz of each split

4,189,737 labelled images in train, 234,156 in validation; the test split has questions but no captions and is left out. Annotations
lie in one file a split, in no order of the archives, and are joined on disk. Source rows are the images of the chosen
archives and the annotations that name them; an annotation that names no archive counts as missing_image with archive 0. Midjourney's own
flags at the end of a prompt (--ar 2:3 --v 4 --no people) are cut off, but for caption_cleaning="none"; column `prompt` keeps them.
"""

import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, ClassVar

import datasets
import huggingface_hub

from builders.archives.members import stem
from builders.archives.midjourney import without_flags
from builders.archives.remote import open_file
from builders.archives.sources import ArchiveBuilder, ArchiveShard, Source, SplitSources, hub_url
from builders.core import shallow_json
from builders.core.annotation_db import OTHERS, Join, count_others
from builders.core.base import make_key
from builders.core.captions import LONGEST, clean_captions
from builders.core.config import NumberedConfig, parse_parts
from builders.core.log import logger
from builders.core.record import SourceRow

_REPOSITORY = "JourneyDB/JourneyDB"
# The repathed ones: only their paths match the archives ("realease" is the publisher's)
_TABLES = {
    "train": "data/train/train_anno_realease_repath.jsonl.tgz",
    "validation": "data/valid/valid_anno_repath.jsonl.tgz",
}
_QUESTIONS, _NUM_TEST = "data/test/test_questions.jsonl.tgz", 5402
_NUM_PUBLISHED = 200
_PATH = re.compile(r"(\d+)/([^/]+)")


@dataclass
class JourneydbConfig(NumberedConfig):
    """caption_field    which of two captions is the first, and must be there: "prompt": what the user wrote, of kind `prompt`;
    "caption": GPT-3.5's sentence, of kind `gpt`, which unlabelled images lack
    """

    caption_field: str = "prompt"

    def check(self) -> None:
        super().check()
        self._choose("caption_field", "prompt", "caption")


class Journeydb(ArchiveBuilder):
    VERSION = datasets.Version("1.1.0")
    DESCRIPTION = "Images made with Midjourney, their prompts and captions."
    HOMEPAGE = "https://journeydb.github.io"
    LICENSE = "JourneyDB terms of usage: non-commercial research only, no redistribution"
    BUILDER_CONFIG_CLASS = JourneydbConfig
    BUILDER_CONFIGS: ClassVar = [
        JourneydbConfig(name="default", version=VERSION),
        JourneydbConfig(name="small", version=VERSION, parts="0-1"),
    ]
    DEFAULT_CONFIG_NAME = "default"
    EXTRAS: ClassVar = {
        "prompt": datasets.Value("string"),
        "task1": datasets.Value("string"),  # JSON: style, content, atmosphere
        "task2_caption": datasets.Value("string"),
        "task3": datasets.Value("string"),  # JSON: questions and answers, whose keys vary from item to item
    }

    def _sources(self) -> dict[str, SplitSources]:
        sources = {}
        for split, table in _TABLES.items():
            folder = f"{posixpath.dirname(table)}/imgs"
            parts = parse_parts(self.config.parts, self._published(folder))
            archives = [_source(f"{folder}/{part:03d}.tgz") for part in parts]
            sources[split] = SplitSources(archives, {"annotations": _source(table)})
        return sources

    def _published(self, folder: str) -> set[int]:
        """Numbers of the archives of a split: the 200 that are known, and any that the folder holds beyond them."""
        if self.config.data_dir is not None:
            root = os.path.join(self.config.data_dir, folder)
            names = os.listdir(root) if os.path.isdir(root) else []
        else:
            try:
                files = huggingface_hub.HfFileSystem(token=self.token)
                names = files.ls(f"datasets/{_REPOSITORY}/{folder}", detail=False)
            except OSError as error:
                logger.warning(
                    f"journeydb: cannot list {folder} ({type(error).__name__}), taking {_NUM_PUBLISHED} tgz"
                )
                names = []
        numbers = (re.fullmatch(r"(\d+)\.tgz", posixpath.basename(name)) for name in names)
        return {*range(_NUM_PUBLISHED), *(int(match[1]) for match in numbers if match)}

    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        part, annotations, seen = _part(shard), self._annotations(shard), set()
        for member in self._members(shard):
            name = stem(member.name)
            seen.add(name)
            found = annotations.get(part, name) or {}
            yield self._row(shard, name, member.read(), f"{shard.path}/{member.name}", found)
        for name, found in annotations.items(part, but=seen):
            yield self._row(shard, name, None, shard.path, found)

    def _row(
        self, shard: ArchiveShard, name: str, image: bytes | None, source: str, found: dict[str, Any]
    ) -> SourceRow:
        task, prompt = found.get("Task2"), _text(found.get("prompt"))
        sentence = _text(task.get("Caption")) if isinstance(task, dict) else None
        plain = prompt is None or self.config.caption_cleaning == "none" or len(prompt) > LONGEST
        captions = {"prompt": prompt if plain else without_flags(str(prompt)), "gpt": sentence}
        kinds = ["prompt", "gpt"] if self.config.caption_field == "prompt" else ["gpt", "prompt"]
        asked, other = captions[kinds[0]], captions[kinds[1]]
        if other is not None and clean_captions([asked], self.config.caption_cleaning)[1] is not None:
            # The other does not stand in for it: the row is rejected by the one that was asked for.
            kinds = kinds[:1]
        extras = {
            "prompt": prompt,
            "task1": _dumps(found.get("Task1")),
            "task2_caption": sentence,
            "task3": _dumps(found.get("Task3")),
        }
        key = make_key(f"{shard.split}-{stem(shard.path)}-{name}")
        return SourceRow(key, image, [captions[kind] for kind in kinds], source, extras, kinds=kinds)

    def _annotations(self, shard: ArchiveShard) -> Join:
        location = shard.tables["annotations"]
        return self._join(location, lambda: self._chosen(location), scope=str(self.config.parts))

    def _chosen(self, location: str) -> Iterator[tuple[str, str, Any]]:
        """Part, image name and record of the chosen parts, and the number of the others."""
        parts, others = self.config.parts, 0
        chosen = None if parts is None else {str(part) for part in parse_parts(parts, range(10_000))}
        with open_file(location, self.token) as file:
            for record in _records(file):
                path = posixpath.normpath(str(record.pop("img_path", "")))
                match = _PATH.fullmatch(path)
                part, name = (str(int(match[1])), stem(match[2])) if match else ("0", path)
                if chosen is None or part in chosen:
                    yield part, name, record
                else:
                    others += 1
        yield OTHERS, "", others

    def _absent(self, shards: list[ArchiveShard]) -> int:
        return count_others(self._annotations(shards[0]), {_part(shard) for shard in shards})

    def _uncaptioned(self) -> int:
        path = os.path.join(self.config.data_dir or "", _QUESTIONS)
        if self.config.data_dir is None or not os.path.isfile(path):
            return _NUM_TEST
        with open(path, "rb") as file:
            return sum(1 for _ in _records(file))


def _part(shard: ArchiveShard) -> str:
    return str(int(stem(shard.path)))


def _source(path: str) -> Source:
    return Source(path, hub_url(_REPOSITORY, path))


def _records(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The lines of the one .jsonl in a tgz; it is larger than memory, so not `Member.read`."""
    with tarfile.open(fileobj=file, mode="r|gz") as archive:
        for info in archive:
            for line in archive.extractfile(info) or ():
                if line.strip():
                    record = shallow_json.load(line)
                    if not isinstance(record, dict):
                        raise ValueError(f"a line is no object: {line[:60]!r}")
                    yield record


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _dumps(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)
