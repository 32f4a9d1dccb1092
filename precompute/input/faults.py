"""What a reader raised, told apart: what may pass, and the line at the bottom that names the cure."""

import aiohttp
from huggingface_hub.utils import httpx

from builders.archives.read_errors import causes, is_refusal, status_of, verdict, without_query
from builders.core.errors import BuilderError

NETWORK = (aiohttp.ClientError, httpx.RequestError, ConnectionError, TimeoutError)


def may_pass(error: BaseException) -> bool:
    """Whether it is the network, and not what came through it."""
    is_network = status_of(error) is not None or any(isinstance(cause, NETWORK) for cause in causes(error))
    return is_network and verdict(error, "") is None


def innermost(error: BaseException) -> str:
    """datasets wraps what went wrong; the message at the bottom, or of ours, is the one that names the cure."""
    while error.__cause__ is not None and not isinstance(error, BuilderError):
        error = error.__cause__
    text = without_query(error).strip() or type(error).__name__
    if is_refusal(error) and not isinstance(error, BuilderError):
        text += ": run `hf auth login` with an account that may read it, or take fresh links"
    return text
