"""What all builders share: the record, the gate, and the account of every source row.

A dataset says where its rows are (`_shards`) and what they are (`_rows`); everything after that happens here. Each source row becomes
one record or one rejection with a reason out of REASONS, and the counts are shown at the end of a build. A source row is an image in an
archive that is read, or an annotation whose image should be in one and is not. `image` holds the source's bytes and decodes as RGB.
"""

import abc
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import datasets
from datasets.builder import Key

from builders.core import images
from builders.core.cache_key import code_hash, folder_fingerprint
from builders.core.captions import LONGEST, clean_captions
from builders.core.config import ImageCaptionConfig
from builders.core.counted_examples import CountedExamples
from builders.core.errors import NoRecordsError
from builders.core.rgb_image import RGB_IMAGES, restore_rgb_image

logger = logging.getLogger("builders")

# Every reason to reject a source row. The first that holds, in this order, is the one that counts.
REASONS = {
    "bad_archive": "the rest of an archive cannot be read (truncated or damaged): fetch it again",
    "duplicate_key": "a second row with the key of an earlier one",
    "missing_image": "an annotation whose image is not in the archive",
    "unreadable": "a file that the disk or its permissions do not let be read, or a member without content of its own",
    "missing_caption": "an image that no annotation names, or whose caption is no text: NaN, bytes, an object",
    "unreadable_text": "a caption in another encoding than UTF-8, or none at all: name it with caption_encoding",
    "unsafe": "over the safety threshold, flagged by its maker, or without a score",
    "caption_too_long": f"more than {LONGEST:,} characters: a page, not a caption",
    "empty_caption": "no letter, digit or emoji is left of the caption after cleaning",
    "unsupported_format": "a picture that no decoder here reads (HEIC, JPEG XL, SVG): convert it to JPEG, PNG, WebP or AVIF",
    "undecodable": "zero bytes, not an image (an HTML page, say), truncated or damaged",
    "too_large": f"more than {images.MAX_PIXELS:,} pixels: a decompression bomb",
    "too_small": "shorter edge under min_image_size",
}

# What is no source row of the splits that are read, and left out by design. It is told of with the same account.
LEFT_OUT = {
    "no_caption_split": "an image of the test split, which was published without captions",
    "no_archive": "a file beside the archives that is none, or hidden",
    "not_image_or_caption": "a file of a folder that is neither",
    "hidden": "a file whose name, or its folder's, begins with a dot",
    "second_caption_file": "a caption file of a picture that has another, or captions in a table",
    "outside_of_splits": "a file beside the folders train, validation and test",
    "archive_absent": "an annotation of an archive that is not in data_dir, or not among the parts asked for",
}


class Row(NamedTuple):
    """One source row as a dataset finds it, before cleaning and gate. None means: not there."""

    key: str
    image: bytes | None
    captions: Sequence[object] | None
    source: str
    extras: Mapping[str, Any] = MappingProxyType({})
    reject: str | None = None


class ImageCaptionBuilder(datasets.GeneratorBasedBuilder, abc.ABC):
    """Base of every builder: implement `_shards` and `_rows`, name the extra columns in EXTRAS."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ImageCaptionConfig
    DEFAULT_WRITER_BATCH_SIZE = 64  # rows in memory before a write; datasets' 100 is much with 2 MB images
    EXTRAS: ClassVar[dict[str, Any]] = {}
    DESCRIPTION = HOMEPAGE = LICENSE = CITATION = ""

    @abc.abstractmethod
    def _shards(self, dl_manager: Any) -> dict[str, list[Any]]:
        """Per split, its shards in order: picklable values that `_rows` understands. Reads no data."""

    @abc.abstractmethod
    def _rows(self, shard: Any) -> Iterator[Row]:
        """The source rows of one shard, always in the same order."""

    def identity(self, shards: list[Any]) -> str:
        """What the shards are made of, wherever it lies: read from elsewhere, the same files give the same text."""
        return repr(shards)

    def __init__(
        self, *args: Any, data_dir: str | None = None, hash: str | None = None, **kwargs: Any
    ) -> None:
        if data_dir is not None:
            data_dir = os.path.abspath(os.path.expanduser(data_dir))
            if os.path.isdir(data_dir):
                kwargs["data_fingerprint"] = folder_fingerprint(data_dir)
        super().__init__(*args, data_dir=data_dir, hash=code_hash(type(self)), **kwargs)
        restore_rgb_image(
            self.info, self.config.color_profile
        )  # which comes from the cache where there is one
        self._raw_features = datasets.Features(
            {**self._info().features, "image": datasets.Image(decode=False)}
        )

    def _info(self) -> datasets.DatasetInfo:
        self.config.check()
        columns = {
            "key": datasets.Value("string"),
            "image": RGB_IMAGES[self.config.color_profile],
            "caption": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "source": datasets.Value("string"),
            **self.EXTRAS,
        }
        if self.config.keep_rejected:
            columns["reject"] = columns["error"] = datasets.Value("string")
        return datasets.DatasetInfo(
            description=self.DESCRIPTION,
            features=datasets.Features(columns),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
            citation=self.CITATION,
        )

    def _load_info(self) -> datasets.DatasetInfo:
        info = super()._load_info()
        restore_rgb_image(info, self.config.color_profile)
        return info

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        # Only `shards` is a list, so that datasets splits the work by it; a list of its own for the total would split too.
        return [
            datasets.SplitGenerator(
                split,
                gen_kwargs={
                    "shards": shards,
                    "split": split,
                    "num_shards": len(shards),
                    "first": next(iter(shards), None),
                },
            )
            for split, shards in self._shards(dl_manager).items()
        ]

    def _generate_examples(
        self, shards: list[Any], split: str, counts: Counter[str] | None = None, **whole: Any
    ) -> Iterator[tuple[Key, dict[str, Any]]]:
        for index, shard in enumerate(shards):
            seen: set[str] = set()
            for number, row in enumerate(self._rows(shard)):
                reason, record = ("duplicate_key", self._blank(row)) if row.key in seen else self._judge(row)
                seen.add(row.key)
                if counts is not None:
                    counts[reason or "ok"] += 1
                if self.config.keep_rejected:
                    record["reject"] = reason
                elif reason is not None:
                    continue
                yield Key(index, number), record

    def _judge(self, row: Row) -> tuple[str | None, dict[str, Any]]:
        """The reason to reject the row, or None, and its record as far as it goes."""
        record = self._blank(row)
        data, config = row.image, self.config
        if row.reject is not None:
            return row.reject, record
        if data is None:
            return "missing_image", record
        record["image"] = {
            "bytes": data,
            "path": None,
        }  # no path: datasets drops the bytes where a file of that name exists
        cleaned, reason = clean_captions(row.captions, config.caption_cleaning)
        if reason is not None:
            return reason, record
        record["captions"] = [text for _, text in cleaned]
        record["caption"] = record["captions"][0]
        try:
            info = images.probe(data)
        except images.ImageTooLarge:
            return "too_large", record
        except images.UnsupportedImage:
            return "unsupported_format", record
        except images.UndecodableImage:
            return "undecodable", record
        record["width"], record["height"] = info.width, info.height
        if info.width * info.height > images.MAX_PIXELS:
            return "too_large", record
        if min(info.width, info.height) < config.min_image_size:
            return ("too_small" if min(info.width, info.height) else "undecodable"), record
        if not images.is_whole(data, info.format):
            return "undecodable", record
        if config.max_image_size is not None and min(info.width, info.height) > config.max_image_size:
            return self._shrunk(data, record)
        return None, record

    def _blank(self, row: Row) -> dict[str, Any]:
        """A record of which nothing but its origin is known."""
        record: dict[str, Any] = dict.fromkeys(self._raw_features)
        record.update(row.extras, key=row.key, source=row.source.encode("utf-8", "replace").decode())
        return record

    def _shrunk(self, data: bytes, record: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        config = self.config
        try:
            small = images.shrink(data, config.max_image_size, config.lossless, config.color_profile)
        except images.UndecodableImage:
            return "undecodable", record
        info = images.probe(small)
        record.update(image={"bytes": small, "path": None}, width=info.width, height=info.height)
        return None, record

    # --- the account: jobs leave their counts in the folder that the build writes to, the parent sums and shows them ---------------

    def _prepare_split_single(
        self, gen_kwargs: dict[str, Any], *args: Any, job_id: int, **kwargs: Any
    ) -> Iterator[tuple[int, bool, Any]]:
        counts: Counter[str] = Counter()
        for item in super()._prepare_split_single(
            {**gen_kwargs, "counts": counts}, *args, job_id=job_id, **kwargs
        ):
            if item[1]:  # the job is done
                with open(self._counts_path(gen_kwargs["split"], job_id), "w", encoding="utf-8") as file:
                    json.dump(counts, file)
            yield item

    def _prepare_split(self, split_generator: datasets.SplitGenerator, *args: Any, **kwargs: Any) -> None:
        super()._prepare_split(split_generator, *args, **kwargs)
        split, job, counts = split_generator.name, 0, Counter[str]()
        while os.path.exists(path := self._counts_path(split, job)):
            with open(path, encoding="utf-8") as file:
                counts.update(json.load(file))
            os.remove(path)
            job += 1
        try:
            self._report(split_generator.gen_kwargs, counts)
        except (
            NoRecordsError
        ) as error:  # which must not cost the other splits: as_dataset raises it where this one is asked for
            logger.warning(str(error))

    def as_dataset(self, split: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `datasets` has it. Raises NoRecordsError where the split, or every one, holds no record."""
        known = self.info.splits or {}
        empty = [name for name, part in known.items() if not part.num_examples]
        if empty and (str(split) in empty or (split is None and len(empty) == len(known))):
            raise NoRecordsError(
                f"no records. {self.name}/{self.config.name} {', '.join(empty)}: every source row was rejected; "
                "keep_rejected=True gives them with their reasons"
            )
        return super().as_dataset(split, *args, **kwargs)

    def _counts_path(self, split: str, job: int) -> str:
        return f"{self._output_dir}/{split}-{job:05d}.counts.json"

    def _get_examples_iterable_for_split(self, split_generator: datasets.SplitGenerator) -> CountedExamples:
        return CountedExamples(self._generate_examples, split_generator.gen_kwargs)

    def left_out(self, split: str) -> Mapping[str, int | list[str]]:
        """What belongs to no split, as a number or by name, by reason out of LEFT_OUT, as far as this split has to tell of it.

        Call it after `_shards`.
        """
        return {}

    def _report(self, read: Mapping[str, Any], counts: Counter[str], resumed: bool = False) -> None:
        """`read`: the gen_kwargs that have been read to the end, of all shards or of some."""
        split, rows, records = read["split"], counts.total(), counts["ok"]
        summary = f"{self.name}/{self.config.name} {split}: "
        account = []
        if not self.config.keep_rejected:  # whoever asks for the rejected rows counts them
            account.append(
                f"{rows:,} rows, {records:,} records, {rows - records:,} rejected"
                + _listed(" ({})", REASONS, counts)
            )
            if not records and len(read["shards"]) == read["num_shards"] and not resumed:
                raise NoRecordsError(f"no records. {summary}{account[0]}")
        if read["first"] in read["shards"]:  # so that of many readers one tells
            account.append(_left_out(self.left_out(split)))
        if any(account):
            logger.warning(summary + "; ".join(filter(None, account)))


def _listed(form: str, reasons: Mapping[str, str], counts: Counter[str]) -> str:
    told = ", ".join(f"{reason} {counts[reason]:,}" for reason in reasons if counts[reason])
    return form.format(told) if told else ""


def _left_out(found: Mapping[str, int | list[str]]) -> str:
    """`hidden 3: .DS_Store, .git/config, ...`"""
    told = []
    for reason in LEFT_OUT:
        names = found.get(reason) or 0
        if isinstance(names, int):
            told += [f"{reason} {names:,}"] if names else []
        else:
            told.append(
                f"{reason} {len(names):,}: {', '.join(map(_printable, names[:3]))}"
                + ", ..." * (len(names) > 3)
            )
    return "left out: " + ", ".join(told) if told else ""


def _printable(name: str) -> str:
    """The name as a line of text may hold it: without control characters, and without bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)


_KEY = re.compile(r"[A-Za-z0-9_-]+")


def make_key(name: str) -> str:
    """A record key out of any name: itself where it is legal already, else made legal with a hash that keeps it unique."""
    if _KEY.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") + f"-{digest}"
