"""A file that has arrived in part: NAME.part, and NAME.part.of beside it, which says of which version of the file it is a part."""

import contextlib
import hashlib
import os
from typing import IO, Any

__all__ = ["PartialFile"]

_CHUNK = 2**20  # bytes read at a time


class PartialFile:
    """What there is of a file under its temporary name.

    path       NAME.part
    version    the ETag or time of the file that it is a part of, as If-Range takes it; empty where nobody knows
    """

    def __init__(self, target: str) -> None:
        self.path = target + ".part"
        self._target, self._of = target, self.path + ".of"

    @property
    def size(self) -> int:
        return os.path.getsize(self.path) if os.path.isfile(self.path) else 0

    @property
    def version(self) -> str:
        try:
            with open(self._of, encoding="ascii") as file:
                return file.read()
        except (FileNotFoundError, UnicodeError):
            return ""

    def open(self, have: int, version: str) -> tuple[IO[bytes], Any]:
        """The file, to be written from byte `have` on as a part of that version, and the sha256 of what stands before."""
        with open(self._of, "w", encoding="ascii", errors="ignore") as of:
            of.write(version)
        file, digest = open(self.path, "r+b" if have else "wb"), hashlib.sha256()
        while chunk := file.read(min(_CHUNK, have - file.tell())) if have else b"":
            digest.update(chunk)
        file.seek(have)
        return file, digest

    def remove(self) -> None:
        for path in (self.path, self._of):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)

    def name(self) -> None:
        """The part is whole: it gets the file's name."""
        os.replace(self.path, self._target)
        self.remove()
