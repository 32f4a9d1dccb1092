"""A file of a web server, read by ranges: each is one request, and no more is taken than was asked for."""

import contextlib
from collections.abc import Iterator
from typing import Any

from huggingface_hub.utils import httpx

from builders.archives.pace import at_pace
from builders.core.errors import DownloadError

__all__ = ["HttpFile"]

_TIMEOUT = 60  # seconds without a byte
_LONGEST_NUMBER = 18  # digits of a size


class HttpFile:
    """One URL. Raises httpx's errors where a request fails, DownloadError where the answer is not what was asked for."""

    def __init__(self, url: str) -> None:
        self._url, self._tag = url, ""
        # identity: a range counts bytes of the file, not of its compressed transfer
        self._client = httpx.Client(
            timeout=_TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"}
        )

    def facts(self) -> dict[str, Any]:
        """`size` in bytes, and what tells this version of the file from another."""
        with self._answer(0, 1) as answer:
            size = _size_of(answer)
            if size is None:
                raise _not_streamed("it does not say how long the file is")
            self._tag = answer.headers.get("ETag", "")
            changed = answer.headers.get("Last-Modified")
            return {"name": self._url, "size": size, "ETag": self._tag, "last_modified": changed}

    def read(self, start: int, end: int, size: int) -> bytes:
        """Bytes `start` to `end` of the file, which has `size` bytes."""
        with self._answer(start, end) as answer:
            if answer.status_code == 200 and start:
                raise _not_streamed("it sends whole files where a part is asked for")
            if _size_of(answer) not in (None, size) or answer.headers.get("ETag", self._tag) != self._tag:
                raise DownloadError("the file has changed while it was read. Run again")
            data = bytearray()
            for chunk in at_pace(answer):
                data += chunk
                if len(data) >= end - start:
                    return bytes(data[: end - start])
            raise httpx.RemoteProtocolError(f"{len(data):,} of {end - start:,} bytes arrived")

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _answer(self, start: int, end: int) -> Iterator[Any]:
        """The answer to a request for a range; its body is not read yet."""
        headers = {"Range": f"bytes={start}-{end - 1}"}
        with self._client.stream("GET", self._url, headers=headers) as answer:
            status = answer.status_code
            sent = answer.headers.get("Content-Range", "")
            if status == 206 and not sent.startswith(f"bytes {start}-"):
                raise _not_streamed(f"asked for bytes {start}-{end - 1}, it sends {sent or 'others'}")
            if status not in (200, 206) and (status, sent) != (416, "bytes */0"):
                raise httpx.HTTPStatusError(
                    f"the server answered {status}", request=answer.request, response=answer
                )
            yield answer


def _size_of(answer: Any) -> int | None:
    """The whole file's size as the answer names it."""
    whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
    text = answer.headers.get("Content-Length", "") if answer.status_code == 200 else whole
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER else None


def _not_streamed(why: str) -> DownloadError:
    return DownloadError(
        f"the server cannot be streamed from: {why}. Fetch the file first, and give its folder as data_dir"
    )
