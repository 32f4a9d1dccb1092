"""Bytes of a caption file as text: by its byte order mark, else as the encoding that is asked for, else as UTF-8.

Nothing is guessed and nothing replaced: GBK read as UTF-8 with U+FFFD in its gaps would be trained on.
"""

import codecs

from builders.core.errors import ConfigError

__all__ = ["check_encoding", "decode_text", "encoding_of"]

# The longer ones first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BEGINNINGS = tuple(mark for mark, _ in _MARKS)


def encoding_of(beginning: bytes, asked: str | None = None) -> str:
    """The encoding of a file by its first four bytes."""
    if beginning.startswith(_BEGINNINGS):
        return next(name for mark, name in _MARKS if beginning.startswith(mark))
    return asked or "utf-8"


def decode_text(data: bytes, asked: str | None = None) -> str:
    """The text. Raises ValueError where it is in another encoding; a NUL is taken for a sign of UTF-16 without its mark."""
    text = data.decode(encoding_of(data, asked))
    if "\0" in text:
        raise ValueError("a NUL character: not UTF-8")
    return text


def check_encoding(name: str, encoding: str | None) -> None:
    """Raises ConfigError where option `name` holds no encoding of text that Python knows."""
    try:
        "a".encode("utf-8" if encoding is None else encoding)
    except LookupError:
        raise ConfigError(
            f"{name}={encoding!r}: no such encoding; give gbk, cp1252, shift_jis, utf-16, ..."
        ) from None
