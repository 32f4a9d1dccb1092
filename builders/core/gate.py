"""The gate: one function that judges a source row, of our datasets and of others'."""

from builders.core import images
from builders.core.captions import clean_captions
from builders.core.config import ImageCaptionConfig
from builders.core.record import Record, SourceRow


def judge(row: SourceRow, rules: ImageCaptionConfig, kind: str, decoded_later: bool = False) -> Record:
    """The record of a row, with the reason in `reject` where it is none: the first that holds, in the order of account.REASONS.

    kind: of captions of which the row does not say it. decoded_later: whole or not, whoever asks finds out by decoding every image.
    """
    source = row.source if row.source.isascii() else row.source.encode("utf-8", "replace").decode()
    if row.reject is not None:
        return Record(row.key, source=source, extras=row.extras, reject=row.reject)
    cleaned, fault = clean_captions(row.captions, rules.caption_cleaning)
    kinds = row.kinds or [kind] * len(row.captions or ())
    image, width, height, reject = row.image, None, None, "missing_image" if row.image is None else fault
    if image is not None and fault is None:
        try:
            image, width, height, reject = _see(image, rules, decoded_later)
        except images.UndecodableImage as error:
            reject = error.reject
    captions = [*cleaned.values()]
    return Record(
        row.key,
        captions[0] if captions else None,
        image,
        source,
        row.extras,
        captions,
        [kinds[position] for position in cleaned],
        width,
        height,
        reject,
    )


def _see(data: bytes, rules: ImageCaptionConfig, decoded_later: bool) -> tuple[bytes, int, int, str | None]:
    """The image, smaller where the rules say so, its width and height, and why it is none to use.

    Raises UndecodableImage where its size is not to be had.
    """
    _, width, height = info = images.probe(data)
    edge = min(width, height)
    if width * height > images.MAX_PIXELS:
        return data, width, height, images.ImageTooLarge.reject
    if edge < rules.min_image_size:
        return data, width, height, "too_small" if edge else "undecodable"
    try:
        if not decoded_later and not images.is_whole(data, info.format, rules.check_pixels):
            return data, width, height, "undecodable"
        if rules.max_image_size is None or edge <= rules.max_image_size:
            return data, width, height, None
        small = images.shrink(data, rules.max_image_size, rules.lossless, rules.color_profile)
    except images.UndecodableImage as error:
        return data, width, height, error.reject
    _, width, height = images.probe(small)
    return small, width, height, None
