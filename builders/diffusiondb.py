"""DiffusionDB: images that people made with Stable Diffusion, with the prompts they wrote.

    load_dataset("builders/diffusiondb", parts="1-10")       # of 14,000 zips of 1,000 images each, lossless WebP, 6.5 TB
    load_dataset("builders/diffusiondb", "2m")               # the first two million, 2,000 zips, PNG, 1.6 TB
    load_dataset("builders/diffusiondb", "small")            # the first 140 zips of the large set, 1 %

Safety scores lie in one table apart from the images and are joined by image name. An image without a score, with NaN, or with 2.0
(blurred by Stable Diffusion's own filter) never passes, whatever the threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import datasets
import pyarrow.compute
import pyarrow.parquet

from builders.archives.members import all_members, basename, stem
from builders.archives.remote import open_file
from builders.archives.sources import ArchiveBuilder, ArchiveShard, Source, SplitSources, hub_url
from builders.core import shallow_json
from builders.core.annotation_db import OTHERS, Join, count_others
from builders.core.base import make_key
from builders.core.config import NumberedConfig, parse_parts
from builders.core.errors import ArchiveError, ConfigError
from builders.core.record import SourceRow

_REPOSITORY = "poloclub/diffusiondb"
_PARAMETERS = {"seed": "se", "step": "st", "cfg": "c", "sampler": "sa"}


@dataclass
class DiffusiondbConfig(NumberedConfig):
    """safety_threshold    highest image and prompt NSFW score that passes, 0 to 1; None lets all pass that have a score"""

    safety_threshold: float | None = 0.2

    def check(self) -> None:
        super().check()
        if self.safety_threshold is not None and not 0 <= self.safety_threshold <= 1:
            raise ConfigError(
                f"safety_threshold={self.safety_threshold!r}: give a number from 0 to 1, or None for all that have a score"
            )


class Diffusiondb(ArchiveBuilder):
    DESCRIPTION = "Images made with Stable Diffusion and their prompts."
    HOMEPAGE = "https://poloclub.github.io/diffusiondb"
    LICENSE = "CC0 1.0"
    CAPTION_KIND = "prompt"
    BUILDER_CONFIG_CLASS = DiffusiondbConfig
    BUILDER_CONFIGS: ClassVar = [
        DiffusiondbConfig(name="large", version=ArchiveBuilder.VERSION),
        DiffusiondbConfig(name="2m", version=ArchiveBuilder.VERSION),
        DiffusiondbConfig(name="small", version=ArchiveBuilder.VERSION, parts="1-140"),
    ]
    DEFAULT_CONFIG_NAME = "large"
    EXTRAS: ClassVar = {
        "seed": datasets.Value("int64"),
        "step": datasets.Value("int32"),
        "cfg": datasets.Value("float32"),
        "sampler": datasets.Value("string"),
        "image_nsfw": datasets.Value("float32"),
        "prompt_nsfw": datasets.Value("float32"),
    }

    def _sources(self) -> dict[str, SplitSources]:
        is_2m = self.config.name == "2m"
        parts = parse_parts(self.config.parts, range(1, 2001 if is_2m else 14_001))
        table = "metadata.parquet" if is_2m else "metadata-large.parquet"
        archives = [_path(part, is_2m) for part in parts]
        scores = {"scores": Source(table, hub_url(_REPOSITORY, table))}
        return {
            "train": SplitSources([Source(path, hub_url(_REPOSITORY, path)) for path in archives], scores)
        }

    def _read(self, shard: ArchiveShard) -> Iterator[SourceRow]:
        scores = dict(self._scores(shard).items(_part(shard)))
        seen = set()
        with open_file(shard.location, self.token) as file:
            members = list(self._visible(shard, all_members(file)))  # the one .json may stand anywhere
            parameters = _read_parameters(
                [member.read() for member in members if member.name.endswith(".json")]
            )
            for number, member in enumerate(members, 1):
                self.share_read = number / len(members)
                name = basename(member.name)
                if not name.endswith(".json"):
                    seen.add(name)
                    yield self._row(shard, name, member.read, parameters.get(name), scores.get(name))
        for name in sorted({*parameters, *scores} - seen):
            yield SourceRow(make_key(stem(name)), None, None, f"{shard.path}/{name}")

    def _row(
        self,
        shard: ArchiveShard,
        name: str,
        read: Any,
        found: dict[str, Any] | None,
        scores: list[float] | None,
    ) -> SourceRow:
        image_nsfw, prompt_nsfw = scores or (None, None)
        extras: dict[str, Any] = {"image_nsfw": image_nsfw, "prompt_nsfw": prompt_nsfw}
        extras |= {column: (found or {}).get(key) for column, key in _PARAMETERS.items()}
        limit = 1.0 if self.config.safety_threshold is None else self.config.safety_threshold
        # A score of NaN is not safe.
        is_safe = scores is not None and all(score is not None and score <= limit for score in scores)
        captions = None if found is None or found.get("p") is None else [found["p"]]
        return SourceRow(
            make_key(stem(name)),
            read() if is_safe else None,
            captions,
            f"{shard.path}/{name}",
            extras,
            None if is_safe else "unsafe",
        )

    def _scores(self, shard: ArchiveShard) -> Join:
        location = shard.tables["scores"]
        return self._join(location, lambda: self._chosen(location), scope=str(self.config.parts))

    def _chosen(self, location: str) -> Iterator[tuple[str, str, Any]]:
        """Part, image name and scores of the chosen parts, and the number of the others."""
        chosen = None if self.config.parts is None else parse_parts(self.config.parts, range(1, 14_001))
        columns, others = ["image_name", "part_id", "image_nsfw", "prompt_nsfw"], 0
        with open_file(location, self.token) as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(columns=columns):
                if chosen is not None:
                    wanted = pyarrow.array(chosen, batch.schema.field("part_id").type)
                    before = len(batch)
                    batch = batch.filter(pyarrow.compute.is_in(batch["part_id"], wanted))
                    others += before - len(batch)
                for name, part, *scores in zip(
                    *(batch[column].to_pylist() for column in columns), strict=True
                ):
                    yield str(part), name, scores
        yield OTHERS, "", others

    def _absent(self, shards: list[ArchiveShard]) -> int:
        return count_others(self._scores(shards[0]), {_part(shard) for shard in shards})


def _part(shard: ArchiveShard) -> str:
    return str(int(stem(shard.path).removeprefix("part-")))


def _path(part: int, is_2m: bool) -> str:
    return (
        f"{'images' if is_2m else f'diffusiondb-large-part-{1 if part <= 10_000 else 2}'}/part-{part:06d}.zip"
    )


def _read_parameters(files: list[bytes]) -> dict[str, dict[str, Any]]:
    try:
        (data,) = files
        found = shallow_json.load(data)
        if not isinstance(found, dict):
            raise ValueError(f"not an object: {data[:60]!r}")
        return {name: values if isinstance(values, dict) else {} for name, values in found.items()}
    except ValueError as error:
        raise ArchiveError(f"its one .json is not there or broken: {error}") from error
