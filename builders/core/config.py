"""The options of the builders, each a keyword of `load_dataset`, and the one place that checks them."""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass

import datasets

from builders.core.captions import PROFILES
from builders.core.color import COLOR_PROFILES
from builders.core.errors import ConfigError


@dataclass
class ImageCaptionConfig(datasets.BuilderConfig):
    """Options that every builder takes.

    min_image_size    smallest shorter edge in pixels
    max_image_size    shrink larger images to this shorter edge (re-encoded); default: bytes stay untouched
    lossless          with max_image_size: sources that are not JPEG are re-encoded losslessly
    caption_cleaning  "none", "light" or "deepfloyd"
    color_profile     "srgb": colours of another profile become sRGB where pixels are decoded; "ignore": the numbers as stored
    check_pixels      decode every picture at the gate: damaged in its middle is undecodable, no error later
    keep_rejected     yield rejected rows too, in order, with their reason in column `reject`; `error` says what a reader said
    captions_from     {NAME: FILE}: captions of kind NAME of a .parquet, .csv or .jsonl, joined by its key, url or source
    captions_order    "front": joined captions come before a row's own; "behind": after them
    captions_sha256   of each of these files; set by the builder so that a changed file is joined anew
    data_fingerprint  names, sizes and times of the files in data_dir; set by the builder so that changed files are read anew
    """

    min_image_size: int = 256
    max_image_size: int | None = None
    lossless: bool = False
    caption_cleaning: str = "light"
    color_profile: str = "srgb"
    check_pixels: bool = False
    keep_rejected: bool = False
    captions_from: dict[str, str] | None = None
    captions_order: str = "front"
    captions_sha256: dict[str, str] | None = None
    data_fingerprint: str | None = None

    def check(self) -> None:
        """Raises ConfigError that names the option, what was given and what to give.

        Not in __post_init__: `datasets` copies a config and sets its fields afterwards.
        """
        hints = typing.get_type_hints(type(self))
        theirs = {field.name for field in dataclasses.fields(datasets.BuilderConfig)}
        for name in [field.name for field in dataclasses.fields(self) if field.name not in theirs]:
            value = getattr(self, name)
            if not _fits(value, hints[name]):
                kind = type(value).__name__
                raise ConfigError(f"{name}={value!r} is of type {kind}: give {_describe(hints[name])}")
        self._choose("caption_cleaning", *PROFILES)
        self._choose("color_profile", *COLOR_PROFILES)
        self._choose("captions_order", "front", "behind")
        self._at_least("min_image_size", 1)
        if self.max_image_size is not None:
            self._at_least("max_image_size", self.min_image_size, "min_image_size, ")

    def _choose(self, name: str, *known: str) -> None:
        if (value := getattr(self, name)) not in known:
            raise ConfigError(f"{name}={value!r}: choose one of {', '.join(known)}")

    def _at_least(self, name: str, least: int, what: str = "") -> None:
        if (value := getattr(self, name)) < least:
            raise ConfigError(f"{name}={value!r}: give at least {what}{least}")


@dataclass
class NumberedConfig(ImageCaptionConfig):
    """parts    which archives, by the numbers in their published names: "0-22", "1,5,9", 7; default all"""

    parts: str | int | None = None


@dataclass
class SlicedConfig(ImageCaptionConfig):
    """first_slice_of    read the first of this many equal slices of each big zip; `small` sets 100"""

    first_slice_of: int = 1

    def check(self) -> None:
        super().check()
        self._at_least("first_slice_of", 1)


def parse_parts(parts: str | int | None, published: Iterable[int]) -> list[int]:
    """The numbers that `parts` selects, ascending: "0-22,30". None selects all published ones. Raises ConfigError."""
    known = set(published)
    if parts is None:
        return sorted(known)
    chosen: set[int] = set()
    for piece in str(parts).split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f'parts={parts!r}: {piece!r} is neither a number nor a range; write "0-22" or "1,5,9"'
            )
        first, last = int(match[1]), int(match[2] or match[1])
        for number in range(first, last + 1):
            if number not in known:
                raise ConfigError(
                    f"parts={parts!r}: there is no archive {number}; published are {min(known)} to {max(known)}"
                )
            chosen.add(number)
    return sorted(chosen)


_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


def _kinds(hint: typing.Any) -> tuple[type, ...]:
    """The types that a hint of the form `int | None` allows; none where it is of another form, which is not checked."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return kinds if all(type(kind) is type for kind in kinds) else ()


def _fits(value: object, hint: typing.Any) -> bool:
    kinds = _kinds(hint)
    if not kinds:
        return True
    if isinstance(value, bool):  # which Python counts as an int
        return bool in kinds
    if (float in kinds and isinstance(value, int)) or (str in kinds and isinstance(value, os.PathLike)):
        return True
    return isinstance(value, kinds)


def _describe(hint: typing.Any) -> str:
    return " or ".join(_NAMES.get(kind, kind.__name__) for kind in _kinds(hint))
