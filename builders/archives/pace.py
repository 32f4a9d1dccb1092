"""The least rate of a server: one that sends a byte now and then is no better than one that sends nothing."""

import time
from collections.abc import Iterator

from huggingface_hub.utils import httpx

LEAST = 2**16  # bytes that come in a window at the least, or the rest of a file
_WINDOW = 120  # seconds


def at_pace(answer: httpx.Response) -> Iterator[bytes]:
    """The body in chunks of at least LEAST bytes. Raises ReadTimeout, as of a server that sends nothing, where one takes too long."""
    begin, held = time.monotonic(), bytearray()
    for piece in answer.iter_raw():
        held += piece
        if len(held) >= LEAST:
            yield bytes(held)
            held.clear()
            begin = time.monotonic()
        elif time.monotonic() - begin > _WINDOW:
            raise httpx.ReadTimeout(f"the server sent {len(held):,} bytes in {_WINDOW} s")
    if held:
        yield bytes(held)
