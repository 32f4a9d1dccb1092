"""The account of a build in words: every reason to reject a row, and what is left out by design."""

from collections import Counter
from collections.abc import Mapping

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
    "hidden": "a file whose name, or its folder's, begins with a dot",
    "second_caption_file": "a caption file of a picture that has another, or captions in a table",
    "outside_of_splits": "a file beside the folders train, validation and test",
    "archive_absent": "an annotation of an archive that is not in data_dir, or not among the parts asked for",
}


def listed(form: str, reasons: Mapping[str, str], counts: Counter[str]) -> str:
    told = ", ".join(f"{reason} {counts[reason]:,}" for reason in reasons if counts[reason])
    return form.format(told) if told else ""


def told_of(found: Mapping[str, int | list[str]]) -> str:
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
