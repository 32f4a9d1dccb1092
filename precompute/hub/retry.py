"""Asking the Hub: again where that may help, and with a cure where it does not."""

import email.utils
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from precompute.errors import PrecomputeError

ATTEMPTS, WAIT = 6, 2.0  # tries of one question; seconds before the second, doubled for each further one
LONGEST = 3600.0  # seconds that are waited because the Hub says so, of one question
FINAL = (400, 401, 402, 403, 404, 413)  # others pass: 409 and 412 are a commit of somebody else's
ASKED = (HTTPError, RuntimeError, OSError, ValueError)  # what the client raises
T = TypeVar("T")

CURES = {
    401: "the Hub does not accept this token. Run `hf auth login` again, or set HF_TOKEN to a valid one",
    402: "the Hub asks for payment: your storage is full. Free some, or take a larger plan",
    403: "this token may not write there. Check USER in USER/REPO, or make a token of role `write` that covers it",
    404: "no such repository, or none that this token may see. Check USER/REPO and --revision",
    409: "others commit there all the time. Run the same command again",
    412: "others commit there all the time. Run the same command again",
    413: "too much for the Hub. Make smaller shards with --samples-per-shard",
    429: "the Hub asks to slow down. Wait, then run the same command again; with --follow raise --every",
}


class PushError(PrecomputeError):
    """The Hub refused, could not be reached, or keeps something else. Nothing local is lost."""


class Refusal(PushError):
    """The Hub says no, and will again until somebody sees to it."""


class HubPatience:
    """How long one question is asked: a few times, and as long as the Hub asks to wait, up to an hour."""

    def __init__(self, repo: str) -> None:
        self._repo, self._failures, self._told, self._conflicts = repo, 0, 0.0, 0

    def bear(self, error: Exception) -> None:
        """Wait before the next try. Raises PushError, which names the repository and says what to do; Refusal where no
        later try can help."""
        status = status_of(error)
        self._failures += 1
        told = retry_after(error)
        if not _is_transient(error, status) or self._failures >= ATTEMPTS or self._told + told > LONGEST:
            kind = Refusal if status in FINAL or _is_offline(error) else PushError
            raise kind(f"{self._repo}: {_explain(error, status, told)}") from error
        self._told += told
        time.sleep(max(told, WAIT * 2 ** (self._failures - 1) * random.uniform(1.0, 1.2)))

    def pause(self, error: Exception) -> None:
        """Wait a moment, since somebody else has committed: one of two always gets through. Raises PushError after many."""
        self._conflicts += 1
        if self._conflicts > 10 * ATTEMPTS:
            raise PushError(f"{self._repo}: {_explain(error, status_of(error), 0.0)}") from error
        time.sleep(WAIT * random.uniform(0.0, 1.0))


def ask(repo: str, question: Callable[[], T]) -> T:
    """The answer to a question about a repository. Raises as Patience does."""
    patience = HubPatience(repo)
    while True:
        try:
            return question()
        except ASKED as error:
            patience.bear(error)


def retry_after(error: BaseException) -> float:
    """Seconds that the Hub asks to wait, as a number or a date; 0 where it says nothing, or nothing that makes sense."""
    for link in _causes(error):
        headers: Any = getattr(getattr(link, "response", None), "headers", None)
        value = str(headers.get("Retry-After") or "").strip() if headers is not None else ""
        if re.fullmatch(r"\d{1,12}(\.\d*)?", value):
            return float(value)
        if value:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError):
                continue
            return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    return 0.0


def _is_transient(error: Exception, status: int | None) -> bool:
    if _is_offline(error):
        return False
    return status in (408, 429) or (status or 0) >= 500 or (status is None and _is_network(error))


def _explain(error: BaseException, status: int | None, told: float) -> str:
    said = _said(error)
    if _is_offline(error):
        return "HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, and run the same command again"
    if status is None:
        what = "the connection was lost" if _is_network(error) else "failed"
        return f"{what} ({said}). Nothing is lost: run the same command again"
    if told > LONGEST:
        return (
            f"the Hub asks to wait {told:,.0f} s ({status}). Nothing is lost: run the same command again then"
        )
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


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; None where it did not answer."""
    for link in _causes(error):
        response: Any = getattr(link, "response", None)
        if response is not None and getattr(response, "status_code", None):
            return int(response.status_code)
    return None


def _is_offline(error: BaseException) -> bool:
    return any(isinstance(link, OfflineModeIsEnabled) for link in _causes(error))


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
