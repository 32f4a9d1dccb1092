"""What strangers wrote, fit for a terminal, a log or a page: no control characters, no secrets of a URL.

Keys, names, URLs and reason phrases go through `printable` before a message holds them, captions through `one_line`.
"""

import re

LONGEST = 2000  # characters

_LOGIN = re.compile(r"(?<=://)[^/?#@\s]*(?::[^/?#\s]*)?@")
_QUERY = re.compile(r"(?<=://)([^\s?#]+)\?[^\s'\"<>)]*")
_TOKEN = re.compile(r"\b(hf_|api_org_)[A-Za-z0-9]{8,}|\b(Bearer|Basic) [A-Za-z0-9._~+/=-]{8,}")


def printable(value: object) -> str:
    """One line of the text: control and direction characters are escaped, user names, passwords and queries of URLs cut."""
    text = str(value)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    text = _TOKEN.sub("***", _QUERY.sub(r"\1?...", _LOGIN.sub("", text)))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The text with each of its lines printable: for messages whose lines are ours."""
    return "\n".join(printable(line) for line in text.split("\n"))


def one_line(text: str) -> str:
    """A caption on a page: its words, whatever stood between them, and nothing that would reorder or break the page."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
