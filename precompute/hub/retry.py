"""Asking the Hub: again where that may help, and with a cure where it does not."""

import itertools
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub.errors import HTTPError

from precompute.errors import PrecomputeError

ATTEMPTS, WAIT = 6, 2.0  # tries of one question; seconds before the second, doubled for each further one
FINAL = (400, 401, 402, 403, 404, 413)  # others pass: 409 and 412 are a commit of somebody else's
T = TypeVar("T")

CURES = {
    401: "the Hub does not accept this token. Run `hf auth login` again, or set HF_TOKEN to a valid one",
    402: "the Hub asks for payment: your storage is full. Free some, or take a larger plan",
    403: "this token may not write there. Make one of role `write` that covers it",
    404: "no such repository, or none that this token may see. Check USER/REPO and --revision",
    413: "too much for the Hub. Make smaller shards with --samples-per-shard",
    429: "the Hub asks to slow down. Wait, then run the same command again; with --follow raise --every",
}


class PushError(PrecomputeError):
    """The Hub refused, could not be reached, or keeps something else. Nothing local is lost."""


class Refusal(PushError):
    """The Hub says no, and will again until somebody sees to it."""


def ask(repo: str, question: Callable[[], T]) -> T:
    """The answer to a question about a repository. Raises PushError, which names it and says what to do; Refusal where
    no later try can help."""
    for attempt in itertools.count(1):
        try:
            return question()
        except (HTTPError, RuntimeError, OSError, ValueError) as error:
            status = _status(error)
            transient = (
                status in (408, 429) or (status or 0) >= 500 or (status is None and _is_network(error))
            )
            if not transient or attempt == ATTEMPTS:
                kind = Refusal if status in FINAL else PushError
                raise kind(f"{repo}: {_explain(error, status)}") from error
            time.sleep(WAIT * 2 ** (attempt - 1) * random.uniform(1.0, 1.2))
    raise AssertionError("unreachable")


def _explain(error: BaseException, status: int | None) -> str:
    said = _said(error)
    if status is None:
        what = "the connection was lost" if _is_network(error) else "failed"
        return f"{what} ({said}). Nothing is lost: run the same command again"
    if status >= 500:
        return f"the Hub is out of order ({status}). Nothing is lost: run the same command again later"
    if re.search(r"quota|storage|limit exceeded", said, re.IGNORECASE) and status in (400, 403, 413):
        return f"{CURES[402]} ({said})"
    return f"{CURES.get(status, f'the Hub answers {status}')} ({said})"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what lies under it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _status(error: BaseException) -> int | None:
    for link in _causes(error):
        response: Any = getattr(link, "response", None)
        if response is not None and getattr(response, "status_code", None):
            return int(response.status_code)
    return None


def _is_network(error: BaseException) -> bool:
    return any(isinstance(link, (HTTPError, ConnectionError, TimeoutError)) for link in _causes(error))


def _said(error: BaseException) -> str:
    """The server's own words, or the error's first line; no address, for it may carry a signature."""
    for link in _causes(error):
        message = getattr(link, "server_message", None)
        if message:
            return str(message).splitlines()[0][:200]
    last = list(_causes(error))[-1]
    first = (str(last).strip() or type(last).__name__).splitlines()[0]
    return re.sub(r"https?://\S+", "…", first)[:200]
