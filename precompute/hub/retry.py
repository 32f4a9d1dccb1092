"""Asking the Hub: again where that may help, and with a cure where it does not."""

import random
import re
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

from builders.archives import backoff
from builders.archives.read_errors import causes, describe, retry_after, status_of
from precompute.errors import PrecomputeError
from precompute.input.faults import may_pass

# Seconds of pauses of one question, those that the Hub asks for too: it counts commits by the hour.
HOUR = 3600.0
CONFLICTS, MOMENT = 60, 2.0  # commits of others that are given way to; seconds at the most after each
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
    """How long one question is asked: an hour, and not even once more where the Hub asks to wait for longer."""

    def __init__(self, repo: str) -> None:
        self._repo, self._patience, self._conflicts = repo, backoff.Patience(HOUR, HOUR), 0

    def bear(self, error: Exception) -> None:
        """Wait before the next try. Raises PushError, which names the repository and says what to do; Refusal where no
        later try can help."""
        status, asked = status_of(error), retry_after(error)
        told = backoff.seconds_asked(asked)
        may_help = may_pass(error) and told <= HOUR
        if not may_help or not self._patience.wait(f"{self._repo}: {describe(error)}", asked):
            kind = Refusal if status in FINAL or _is_offline(error) else PushError
            raise kind(f"{self._repo}: {_explain(error, status, told)}") from error

    def pause(self, error: Exception) -> None:
        """Wait a moment, since somebody else has committed: one of two always gets through. Raises PushError after many."""
        self._conflicts += 1
        if self._conflicts > CONFLICTS or backoff.cut_short(random.uniform(0.0, MOMENT)):
            raise PushError(f"{self._repo}: {_explain(error, status_of(error), 0.0)}") from error


def ask(repo: str, question: Callable[[], T]) -> T:
    """The answer to a question about a repository. Raises as HubPatience does."""
    patience = HubPatience(repo)
    while True:
        try:
            return question()
        except ASKED as error:
            patience.bear(error)


def _explain(error: BaseException, status: int | None, told: float) -> str:
    said = _said(error)
    if _is_offline(error):
        return "HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, and run the same command again"
    if status is None:
        what = "the connection was lost" if may_pass(error) else "failed"
        return f"{what} ({said}). Nothing is lost: run the same command again"
    if told > HOUR:
        return (
            f"the Hub asks to wait {told:,.0f} s ({status}). Nothing is lost: run the same command again then"
        )
    if status >= 500:
        return f"the Hub is out of order ({status}). Nothing is lost: run the same command again later"
    if re.search(r"quota|storage|limit exceeded", said, re.IGNORECASE) and status in (400, 403, 413):
        return f"{CURES[402]} ({said})"
    return f"{CURES.get(status, f'the Hub answers {status}')} ({said})"


def _is_offline(error: BaseException) -> bool:
    return any(isinstance(link, OfflineModeIsEnabled) for link in causes(error))


def _said(error: BaseException) -> str:
    """The server's own words, or the error's first line; no address, for it may carry a signature."""
    for link in causes(error):
        message = getattr(link, "server_message", None)
        if message:
            return str(message).splitlines()[0][:200]
    last = list(causes(error))[-1]
    first = (str(last).strip() or type(last).__name__).splitlines()[0]
    return re.sub(r"https?://\S+", "…", first)[:200]
