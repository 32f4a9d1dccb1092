"""A file of an archive, which is read when asked for."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Member", "NoContent"]


class NoContent(bytes):
    """What a member reads as whose content is not to be had: a link to nowhere, a sparse member."""


# No NamedTuple, which takes twice the time to make one; there are millions.
@dataclass(slots=True)
class Member:
    """A file of an archive, or a link to one; `read` works until the next member is asked for.

    fault: why its content is not to be had, and `read` gives NoContent: a sparse member, a link to nowhere.
    """

    name: str
    read: Callable[[], bytes]
    fault: str | None = None
