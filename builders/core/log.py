"""The log of the builders. Names in it may be a stranger's: what would move a cursor or colour a terminal is written out."""

import logging

__all__ = ["logger", "visible"]

logger = logging.getLogger("builders")


def visible(text: str) -> str:
    """The text, its lines kept, with every other control character escaped."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _make_visible(record: logging.LogRecord) -> bool:
    record.msg, record.args = visible(record.getMessage()), ()
    return True


logger.addFilter(_make_visible)
