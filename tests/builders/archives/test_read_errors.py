"""What failures mean, whichever reader below us says it and however it wraps it."""

import errno
import os
from typing import Any

import pytest
from huggingface_hub import errors as hub
from huggingface_hub.utils import httpx

from builders.archives.read_errors import describe, is_lost, verdict, without_query
from builders.core.errors import ArchiveError, DownloadError, RefusedError

URL = "hf://datasets/USER/SET@main/a.tar"


def answered(kind: Any, status: Any) -> Any:
    """An error of the Hub's client behind an answer of the server."""
    request = httpx.Request("GET", "https://huggingface.co/a.tar?signature=SECRET")
    return kind("not to be had", response=httpx.Response(status, request=request))


def not_found(cause: Any = None) -> Any:
    """A file system that is no disk says it so: without a number."""
    error = FileNotFoundError("datasets/USER/SET/a.tar")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (not_found(), ArchiveError),
        (not_found(answered(hub.RemoteEntryNotFoundError, 404)), ArchiveError),
        (answered(hub.RemoteEntryNotFoundError, 404), ArchiveError),
        (answered(hub.HfHubHTTPError, 410), ArchiveError),
        # A private one is said to be not there.
        (not_found(answered(hub.RepositoryNotFoundError, 404)), RefusedError),
        (not_found(answered(hub.RepositoryNotFoundError, 401)), RefusedError),
        (answered(hub.GatedRepoError, 403), RefusedError),
        (not_found(answered(hub.RevisionNotFoundError, 404)), DownloadError),
        (hub.OfflineModeIsEnabled("offline"), DownloadError),
        (answered(hub.HfHubHTTPError, 416), DownloadError),
        (FileNotFoundError(errno.ENOENT, "gone", "/mnt/a.tar"), DownloadError),
        (not_found(ConnectionRefusedError()), type(None)),
        (not_found(httpx.ConnectTimeout("slow")), type(None)),
        (answered(hub.HfHubHTTPError, 429), type(None)),
        (answered(hub.HfHubHTTPError, 599), type(None)),
        (OSError(errno.EIO, "as some report whatever they do not know"), type(None)),
        (TimeoutError(), type(None)),
    ],
)
def test_verdict(error: Any, kind: Any) -> None:
    found = verdict(error, URL)
    assert type(found) is kind
    assert "SECRET" not in str(found)


def test_refusal_names_the_page_with_the_terms() -> None:
    found = verdict(answered(hub.GatedRepoError, 403), URL)
    assert "https://huggingface.co/datasets/USER/SET, then run `hf auth login`" in str(found)


def test_a_damaged_sector_is_told_from_a_missing_disk() -> None:
    assert is_lost(OSError(errno.EIO, os.strerror(errno.EIO)))
    for number in (errno.ENOENT, errno.ENOTCONN, errno.ESTALE, errno.EACCES, errno.ENOSPC):
        assert not is_lost(OSError(number, os.strerror(number)))


def test_no_signature_is_told() -> None:
    told = "Max retries exceeded with url: /a.tar?oh=SECRET&x=(SECRET) (Caused by it)"
    assert without_query(told) == "Max retries exceeded with url: /a.tar (Caused by it)"
    assert describe(ValueError("http://host/a?b=SECRET")) == "ValueError: http://host/a"
