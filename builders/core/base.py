"""What all builders share: the record, the gate, and the account of every source row.

A dataset says where its rows are (`_shards`) and what they are (`_rows`); everything after that happens here. Each source row becomes
one record or one rejection with a reason out of REASONS, and the counts are shown at the end of a build. A source row is an image in an
archive that is read, or an annotation whose image should be in one and is not. `image` holds the source's bytes and decodes as RGB.
"""

import abc
import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, ClassVar

import datasets
from datasets.builder import Key

from builders.core.account import Account, Matched
from builders.core.accounted import AccountedBuilder
from builders.core.cache_key import code_hash, folder_fingerprint
from builders.core.config import ImageCaptionConfig
from builders.core.extras import fit
from builders.core.gate import judge
from builders.core.joined_captions import JoinedCaptions, check_files, hash_files, merge
from builders.core.record import Record, SourceRow
from builders.core.rgb_image import RGB_IMAGES, restore_rgb_image


class ImageCaptionBuilder(AccountedBuilder, abc.ABC):
    """Base of every builder: implement `_shards` and `_rows`, name the extra columns in EXTRAS."""

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ImageCaptionConfig
    DEFAULT_WRITER_BATCH_SIZE = 64  # rows in memory before a write; datasets' 100 is much with 2 MB images
    EXTRAS: ClassVar[dict[str, Any]] = {}
    _share: float | None = None
    _find_share: Callable[[], float] | None = None
    CAPTION_KIND = "caption"  # where captions come from: letters and digits
    DESCRIPTION = HOMEPAGE = LICENSE = CITATION = ""

    @abc.abstractmethod
    def _shards(self, dl_manager: Any) -> dict[str, list[Any]]:
        """List the shards of each split in order: picklable values that `_rows` understands. Reads no data."""

    @abc.abstractmethod
    def _rows(self, shard: Any) -> Iterator[SourceRow]:
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
        if (files := kwargs.get("captions_from")) is not None:
            check_files(files, self.CAPTION_KIND)
            kwargs["captions_sha256"] = hash_files(files, kwargs.get("token"))
        super().__init__(*args, data_dir=data_dir, hash=code_hash(type(self)), **kwargs)
        # The info comes from the cache where there is one.
        restore_rgb_image(self.info, self.config.color_profile)
        self._raw_features = datasets.Features(
            {**self._info().features, "image": datasets.Image(decode=False)}
        )
        self._blank = dict.fromkeys(self._raw_features)

    def _info(self) -> datasets.DatasetInfo:
        self.config.check()
        columns = {
            "key": datasets.Value("string"),
            "image": RGB_IMAGES[self.config.color_profile],
            "caption": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
            "caption_kinds": datasets.List(datasets.Value("string")),
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
        self.joined_captions()  # a file that cannot be joined is told before anything is read
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
        self, shards: list[Any], split: str, account: Account | None = None, **whole: Any
    ) -> Iterator[tuple[Key, dict[str, Any]]]:
        files = self.joined_captions()
        for index, shard in enumerate(shards):
            seen: set[str] = set()
            for number, row in enumerate(self._rows(shard)):
                row = row._replace(extras=fit(row.extras, self.EXTRAS)) if row.extras else row
                if files:
                    row = _with_joined(row, files, account, self.CAPTION_KIND, self.config.captions_order)
                if row.key in seen:
                    row = row._replace(reject="duplicate_key")
                seen.add(row.key)
                record = judge(row, self.config, self.CAPTION_KIND)
                if account is not None:
                    account.rows[record.reject or "ok"] += 1
                    if files and record.reject is None:
                        kinds = record.caption_kinds
                        account.without.update(file.name for file in files if file.name not in kinds)
                if record.reject is None or self.config.keep_rejected:
                    yield Key(index, number), self._columns(record)
            if account is not None:
                account.leave(self.left_out(split, shard))

    def _columns(self, record: Record) -> dict[str, Any]:
        found = {**self._blank, **record.extras, **record.columns()}
        if self.config.keep_rejected:
            found["reject"] = record.reject
        return found

    @property
    def share_read(self) -> float | None:
        """How much of the shard that is being read was read, from 0 to 1; None where its reader does not know."""
        if self._find_share is not None:
            self._share = max(self._share or 0.0, self._find_share())
        return self._share

    @share_read.setter
    def share_read(self, share: float) -> None:
        self._share = share

    @contextlib.contextmanager
    def _following(self, file: IO[bytes], index: int = 0, count: int = 1) -> Iterator[None]:
        """Let `share_read` follow what is read of the `index`-th of `count` parts of a file."""
        self._share, size = 0.0, math.inf
        with contextlib.suppress(OSError):  # a disk that fails is told of by who reads the items
            size = file.seek(0, os.SEEK_END) or math.inf
        # Asked for where somebody wants it: a file takes as long to say where it stands as a small member to be read.
        self._find_share = lambda: min(file.tell() / size * count - index, 1.0)
        try:
            yield
        finally:
            self._share, self._find_share = self.share_read, None


_KEY = re.compile(r"[A-Za-z0-9_-]+")


def make_key(name: str) -> str:
    """A record key out of any name: itself where it is legal already, else made legal with a hash that keeps it unique."""
    if _KEY.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") + f"-{digest}"


def _with_joined(
    row: SourceRow, files: Sequence[JoinedCaptions], account: Account | None, own_kind: str, order: str
) -> SourceRow:
    """The row with its captions from elsewhere."""
    joined = {}
    for file in files:
        if found := file.find(row.key, row.source, row.extras):
            number, joined[file.name] = found
            if account is not None:
                account.matched.setdefault(file.name, Matched()).mark(number)
    if not any(joined.values()):
        return row
    own = row.captions or ()
    captions, kinds = merge(own, row.kinds or [own_kind] * len(own), joined, order)
    # What its own caption lacks is not missed any longer.
    reject = None if row.reject == "unreadable_text" else row.reject
    return row._replace(captions=captions, kinds=kinds, reject=reject)
