"""Annotation documents too large for memory: the lists of one JSON object, element by element.

`json.JSONDecoder.raw_decode` over a window that slides along the file takes about 1 µs an element, whatever the size of the file, in
the memory of its largest element.
"""

import codecs
import json
import re
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from builders.archives.members import basename
from builders.archives.remote import open_file
from builders.core.errors import ArchiveError

WINDOW = 2**18  # bytes
LONGEST = 2**24  # bytes of one element; COCO's have hundreds
_SPACE = re.compile(r"[ \t\n\r]*")


def read_document(
    location: str, token: str | bool | None, member: str | None = None
) -> Iterator[tuple[str, Any]]:
    """(key, element) of each list of a JSON file or, with `member`, of the file of that base name in a zip.

    Raises ValueError and zipfile's own errors where it is cut short, damaged or something else.
    """
    with open_file(location, token) as file:
        if member is None:
            yield from iter_lists(file)
            return
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if basename(name) == member]
            if not names:
                raise ArchiveError(f"there is no {member} in it")
            with archive.open(names[0]) as unpacked:
                yield from iter_lists(unpacked)


def iter_lists(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """(key, element) of each list of the one JSON object in the file, in order; its other values are skipped."""
    window = _Window(file)
    window.take("{")
    if window.peek() == "}":
        return
    while True:
        key = window.value()
        window.take(":")
        if window.peek() == "[":
            window.take("[")
            if window.peek() == "]":
                window.take("]")
            else:
                yield key, window.value()
                while window.take(",]") == ",":
                    yield key, window.value()
        else:
            window.value()
        if window.take(",}") == "}":
            return


class _Window:
    """The part of a text that is being decoded."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._text = file, codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder().raw_decode
        self._part, self._at, self._passed = "", 0, 0  # at: in the part; passed: characters before it

    def peek(self) -> str:
        """The next character that is not a space."""
        while True:
            self._at = _SPACE.match(self._part, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._part):
                return self._part[self._at]
            if not self._read_on(WINDOW):
                raise ValueError(f"cut short at character {self._passed + self._at:,}")

    def take(self, expected: str) -> str:
        if (found := self.peek()) not in expected:
            raise ValueError(
                f"{found!r} instead of {' or '.join(expected)} at character {self._passed + self._at:,}"
            )
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, read on for until it is whole."""
        self.peek()
        size = WINDOW
        while True:
            try:
                value, end = self._decode(self._part, self._at)
                if self._part[end : end + 1] not in ("", ".", "e", "E"):  # else a number may go on
                    self._at = end
                    return value
                what = "cut short"
            except json.JSONDecodeError as error:
                what = error.msg
            except RecursionError:
                raise ValueError(
                    f"nested too deep: in the value at character {self._passed + self._at:,}"
                ) from None
            if size > LONGEST or not self._read_on(size):
                raise ValueError(f"{what}: in the value at character {self._passed + self._at:,}")
            size *= 2

    def _read_on(self, size: int) -> bool:
        data = self._file.read(size)
        self._passed += self._at
        self._part, self._at = self._part[self._at :] + self._text.decode(data, final=not data), 0
        return bool(data)
