"""Piles of combining marks, bounded: 30 on one letter are enough for every script, and Unicode's own bound for streams (UAX 15).

Bringing marks into their canonical order takes the square of their number.
"""

import re
import unicodedata

__all__ = ["without_piles"]

_MOST = 30
_SIGNS = re.compile(r"[^\w\s\x00-\x7f]{31,}")  # no combining mark is a word character


def without_piles(text: str) -> str:
    """The text without the marks that follow 30 others."""
    return text if text.isascii() else _SIGNS.sub(_shortened, text)


def _shortened(signs: re.Match[str]) -> str:
    kept, marks = [], 0
    for sign in signs[0]:
        marks = marks + 1 if unicodedata.combining(sign) else 0
        if marks <= _MOST:
            kept.append(sign)
    return "".join(kept)
