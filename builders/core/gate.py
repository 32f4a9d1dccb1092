"""The gate: one function that judges a source row, of our datasets and of others'."""

from dataclasses import replace
from typing import Protocol

from builders.core import images
from builders.core.captions import clean_captions
from builders.core.record import Record, SourceRow


class Rules(Protocol):
    """What a row is judged by; see ImageCaptionConfig for each."""

    min_image_size: int
    max_image_size: int | None
    lossless: bool
    caption_cleaning: str
    color_profile: str
    check_pixels: bool


def judge(row: SourceRow, rules: Rules, kind: str, decoded_later: bool = False) -> Record:
    """The record of a row, with the reason in `reject` where it is none: the first that holds, in the order of account.REASONS.

    kind: of captions of which the row does not say it. decoded_later: whole or not, whoever asks finds out by decoding every image.
    """
    source = row.source.encode("utf-8", "replace").decode()
    if row.reject is not None:
        return Record(row.key, source=source, extras=row.extras, reject=row.reject)
    cleaned, fault = clean_captions(row.captions, rules.caption_cleaning)
    kinds = row.kinds or [kind] * len(row.captions or ())
    found = Record(
        row.key,
        cleaned[0][1] if cleaned else None,
        row.image,
        source,
        row.extras,
        [text for _, text in cleaned],
        [kinds[number] for number, _ in cleaned],
    )
    if row.image is None:
        return replace(found, reject="missing_image")
    if fault is not None:
        return replace(found, reject=fault)
    try:
        return _see(found, row.image, rules, decoded_later)
    except images.UndecodableImage as error:
        return replace(found, reject=error.reject)


def _see(record: Record, data: bytes, rules: Rules, decoded_later: bool) -> Record:
    """Judge the image. Raises UndecodableImage where its size is not to be had."""
    info = images.probe(data)
    record, edge = replace(record, width=info.width, height=info.height), min(info.width, info.height)
    try:
        if info.width * info.height > images.MAX_PIXELS:
            raise images.ImageTooLarge(f"{info.width} x {info.height}")
        if edge < rules.min_image_size:
            return replace(record, reject="too_small" if edge else "undecodable")
        if not decoded_later and not images.is_whole(data, info.format, rules.check_pixels):
            raise images.UndecodableImage("it is not whole")
        if rules.max_image_size is None or edge <= rules.max_image_size:
            return record
        small = images.shrink(data, rules.max_image_size, rules.lossless, rules.color_profile)
    except images.UndecodableImage as error:
        return replace(record, reject=error.reject)
    info = images.probe(small)
    return replace(record, image=small, width=info.width, height=info.height)
