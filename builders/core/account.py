"""The account of a build in words: every reason to reject a row, and what is left out by design."""

import base64
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from builders.core import images
from builders.core.captions import LONGEST

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
    "hidden": "a file of a folder, or a member of an archive, whose name or folder begins with a dot or is __MACOSX",
    "second_caption_file": "a caption file of a picture that has another, or captions in a table",
    "outside_of_splits": "a file beside the folders train, validation and test",
    "archive_absent": "an annotation of an archive that is not in data_dir, or not among the parts asked for",
}

TOLD = 3  # names of each reason


class Left(NamedTuple):
    """Files that are left out for one reason: how many, and the names of the first three."""

    files: int
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str]) -> "Left":
        return cls(len(names), tuple(names[:TOLD]))


class Matched:
    """Which rows of a file have met one of ours, a bit each."""

    def __init__(self, bits: bytes = b"") -> None:
        self._bits = bytearray(bits)

    @classmethod
    def from_text(cls, text: str) -> "Matched":
        return cls(zlib.decompress(base64.b64decode(text)))

    def as_text(self) -> str:
        return base64.b64encode(zlib.compress(self._bits)).decode()

    def mark(self, row: int) -> None:
        self._reach(row // 8 + 1)
        self._bits[row // 8] |= 1 << row % 8

    def add(self, other: "Matched") -> None:
        self._reach(len(other._bits))
        for place, bits in enumerate(other._bits):
            self._bits[place] |= bits

    def count(self) -> int:
        return int.from_bytes(self._bits).bit_count()

    def _reach(self, size: int) -> None:
        self._bits.extend(bytes(max(0, size - len(self._bits))))


class Account:
    """What became of the rows and files of a split, or of a part of it: `rows` by outcome, `ok` or a reason; `left` by reason.

    matched: by NAME of captions from elsewhere, a bit for each row of their file, set where it met a row here.
    without: by NAME, how many records got none of them.
    """

    def __init__(
        self,
        rows: Mapping[str, int] | None = None,
        left: Mapping[str, Sequence[Any]] | None = None,
        matched: Mapping[str, str] | None = None,
        without: Mapping[str, int] | None = None,
    ) -> None:
        self.rows = Counter(rows or {})
        self.matched = {name: Matched.from_text(text) for name, text in (matched or {}).items()}
        self.without = Counter(without or {})
        self.left = {reason: Left(files, tuple(names)) for reason, (files, names) in (left or {}).items()}

    def leave(self, left: Mapping[str, Left]) -> None:
        """Count what is left out in a further part."""
        for reason, more in left.items():
            if more.files:
                had = self.left.get(reason, Left(0))
                self.left[reason] = Left(had.files + more.files, (*had.names, *more.names)[:TOLD])

    def add(self, other: "Account") -> None:
        self.rows.update(other.rows)
        self.leave(other.left)
        self.without.update(other.without)
        for name, theirs in other.matched.items():
            self.matched.setdefault(name, Matched()).add(theirs)

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "matched": {name: bits.as_text() for name, bits in self.matched.items()}}

    def told_captions(self, files: Mapping[str, int], whole: bool) -> str:
        """`llava: 3 of 21 rows of the file match no row, 2 records have none`.

        files: rows of each; whole: whether all of a split was read.
        """
        told = []
        for name, rows in files.items():
            lacking = f"{self.without[name]:,} records have none"
            if whole:
                unmatched = rows - self.matched.get(name, Matched()).count()
                lacking = f"{unmatched:,} of {rows:,} rows of the file match no row, {lacking}"
            told.append(f"{name}: {lacking}")
        return "captions from elsewhere: " + "; ".join(told) if told else ""

    def told_rows(self) -> str:
        """`9 rows, 7 records, 2 rejected (too_small 2)`"""
        rows, records = self.rows.total(), self.rows["ok"]
        reasons = ", ".join(f"{reason} {self.rows[reason]:,}" for reason in REASONS if self.rows[reason])
        told = f"{rows:,} rows, {records:,} records, {rows - records:,} rejected"
        return f"{told} ({reasons})" if reasons else told

    def told_left(self) -> str:
        """`left out: hidden 4: .DS_Store, .git/config, .git/HEAD, ...`; empty where nothing is."""
        told = []
        for reason, (files, names) in (
            (reason, self.left[reason]) for reason in LEFT_OUT if reason in self.left
        ):
            more = ", ..." if names and files > len(names) else ""
            told.append(
                f"{reason} {files:,}" + (f": {', '.join(map(_printable, names))}{more}" if names else "")
            )
        return "left out: " + ", ".join(told) if told else ""


def _printable(name: str) -> str:
    """The name as a line of text may hold it: without control characters, and without bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else "\ufffd" for c in name)
