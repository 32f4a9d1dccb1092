"""What it means that a file cannot be read: gone, refused, or something that may pass.

The readers below us say it in many ways, one inside the other: fsspec calls every failure to ask for a file's size FileNotFoundError,
the Hub's file system a repository that hides from us, too. So the whole chain of causes is looked at.
"""

import errno
import os
import re
from collections.abc import Iterator
from typing import Any

from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from builders.archives.backoff import status_may_pass
from builders.core.errors import ArchiveError, BuilderError, DownloadError, RefusedError

# The same request will never succeed.
_LASTING = (
    HFValidationError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
    httpx.InvalidURL,
    httpx.TooManyRedirects,
    httpx.UnsupportedProtocol,
)


def verdict(error: BaseException, url: str) -> BuilderError | None:
    """What to raise for a request that failed, without trying again; None where it may pass."""
    if isinstance(error, BuilderError):  # which one of ours has judged already
        return type(error)(f"{without_query(url)}: {error}")
    what, status = describe(error), status_of(error)
    if is_refusal(error):
        return RefusedError(f"{without_query(url)}: {refusal(url, what)}")
    is_local = getattr(error, "errno", None) in (errno.ENOENT, errno.EACCES)
    if is_local or _is(error, *_LASTING):
        return DownloadError(f"{without_query(url)}: {what}")
    if is_lost(error):
        return ArchiveError(f"it is gone: {what}")
    if status is not None and not status_may_pass(status):
        return DownloadError(f"{without_query(url)}: {what}")
    return None


def is_refusal(error: BaseException) -> bool:
    """Whether it takes other credentials, or another link. The Hub says of a private repository that there is none."""
    if status_of(error) in (401, 403) or _is(error, RepositoryNotFoundError):
        return True
    return isinstance(error, PermissionError) and error.errno is None  # with a number it is of this machine


def is_lost(error: BaseException) -> bool:
    """Whether it is this one file that cannot be read, now and later: gone from its server, or damaged on the disk.

    Not a local file that is missing: where one goes in the middle of a run, the whole disk is likely gone.
    """
    if status_of(error) in (404, 410) and not _is(error, RepositoryNotFoundError, RevisionNotFoundError):
        return True
    if any(is_disk_fault(cause) for cause in causes(error)):
        return True
    return isinstance(error, FileNotFoundError) and error.errno is None and error.__cause__ is None


def is_disk_fault(error: BaseException) -> bool:
    """Whether the disk cannot read a part of a file. By its text too: other file systems borrow the number."""
    return (
        isinstance(error, OSError) and error.errno == errno.EIO and error.strerror == os.strerror(errno.EIO)
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error."""
    for cause in causes(error):
        response = getattr(cause, "response", None)
        for status in (getattr(cause, "status", None), getattr(response, "status_code", None)):
            if isinstance(status, int) and status:
                return status
    return None


def retry_after(error: BaseException) -> str | None:
    """What the server asked for."""
    for cause in causes(error):
        headers: Any = getattr(cause, "headers", None) or getattr(
            getattr(cause, "response", None), "headers", {}
        )
        if headers and (value := headers.get("Retry-After")):
            return str(value)
    return None


def describe(error: BaseException) -> str:
    """Say it in a few words, those of the cause that knows most."""
    if status := status_of(error):
        return f"the server answered {status}"
    *_, cause = causes(error)
    return f"{type(cause).__name__}: {without_query(str(cause))}".removesuffix(": ")


def refusal(url: str, what: str) -> str:
    """The cure for a file that is not for us."""
    if url.startswith("hf://"):
        repository = "/".join(url.split("/")[3:5]).partition("@")[0]
        return (
            f"{what}: accept the terms at https://huggingface.co/datasets/{repository}, then run `hf auth login` or set "
            "HF_TOKEN, and run again"
        )
    return f"{what}: {without_query(url)} is not public, or no longer"


def without_query(text: object) -> str:
    """Signed links carry their key after the question mark; it is nobody's to read in a log."""
    return re.sub(r"\?\S+", "", str(text))


def _is(error: BaseException, *kinds: type[BaseException]) -> bool:
    return any(isinstance(cause, kinds) for cause in causes(error))
