"""Caption cleaning as pure functions of one string.

    clean_caption("A <b>caf&eacute;</b> &amp; bar  http://x.com", "light")  ->  "A café & bar"

Three profiles. `none` only strips. `light` repairs mojibake, unescapes HTML, drops tags and URLs and normalises whitespace; case,
punctuation and every script stay, and cleaning twice changes nothing. `deepfloyd` gives, byte for byte, what the caption cleaning of
`diffusers`' IFPipeline gives when it is applied twice, as the DeepFloyd IF recipe does: lower case, no CJK, no product codes.
(micro_diffusion, the paper's code, strips its result once more: 2 alt texts of 10,000 end in another sign there.)
"""

import re
import unicodedata
from collections.abc import Callable, Sequence

from builders.core import deepfloyd, light
from builders.core.errors import ConfigError

__all__ = ["LONGEST", "PROFILES", "clean_caption", "clean_captions", "says_something", "whole"]

# Characters of a caption; what is longer is a page, and is rejected as caption_too_long before it is cleaned.
LONGEST = 2**14
PROFILES: dict[str, Callable[[str], str]] = {
    "none": str.strip,
    "light": light.clean,
    "deepfloyd": deepfloyd.clean,
}


def clean_caption(text: str, profile: str = "light") -> str:
    """The cleaned caption, possibly empty. Raises ConfigError for a profile that is not in PROFILES."""
    return _cleaner(profile)(text)


def clean_captions(captions: Sequence[object] | None, profile: str) -> tuple[dict[int, str], str | None]:
    """The cleaned caption, by its position, of each that says something; where there is none, a reason out of base.REASONS.

    What is no text (None, NaN, bytes, an object) is no caption, and what is longer than LONGEST is not cleaned at all.
    """
    clean, reason = _cleaner(profile), "missing_caption"
    kept: dict[int, str] = {}
    for position, text in enumerate(captions or ()):
        if not isinstance(text, str):
            continue
        if len(text) > LONGEST:
            reason = "caption_too_long"
        elif says_something(cleaned := clean(whole(text))):
            kept[position] = cleaned
        elif reason == "missing_caption":
            reason = "empty_caption"
    return kept, None if kept else reason


def _cleaner(profile: str) -> Callable[[str], str]:
    try:
        return PROFILES[profile]
    except KeyError:
        raise ConfigError(f"caption_cleaning={profile!r}: choose one of {', '.join(PROFILES)}") from None


def whole(text: str) -> str:
    """The text with `?` for each half a character (a lone surrogate), which only JSON can hold, and without a byte order mark."""
    return text if text.isascii() else text.removeprefix("\ufeff").encode("utf-8", "replace").decode()


def says_something(text: str) -> bool:
    """True where a letter or digit of any script, or an emoji, is in the text: punctuation and signs (©, €, +, →) alone are no caption.

    An emoji is a symbol of category So from U+2600 on, which is where Unicode has the pictographs.
    """
    return _WORD.search(text) is not None or any(
        character >= "\u2600" and character not in "\ufffc\ufffd" and unicodedata.category(character) == "So"
        for character in text
    )


_WORD = re.compile(r"[^\W_]")
