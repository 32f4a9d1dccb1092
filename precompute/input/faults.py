"""What a reader raised, told apart: what may pass, and the line at the bottom that names the cure."""

import aiohttp
from huggingface_hub.utils import httpx

from builders.archives.read_errors import causes, is_refusal, status_of, verdict, without_query
from builders.core.errors import BuilderError

# A question that the client cannot put, a certificate that does not hold, a proxy that wants a login: no later try helps.
LASTING = (httpx.LocalProtocolError, httpx.UnsupportedProtocol)
LASTING_WORDS = ("CERTIFICATE_VERIFY_FAILED", "407 Proxy Authentication")
NETWORK = (aiohttp.ClientError, httpx.RequestError, ConnectionError, TimeoutError)


def may_pass(error: BaseException) -> bool:
    """Whether it is the network, and not what came through it."""
    is_network = status_of(error) is not None or any(isinstance(cause, NETWORK) for cause in causes(error))
    return is_network and not any(map(_lasts, causes(error))) and verdict(error, "") is None


def _lasts(cause: BaseException) -> bool:
    is_network = isinstance(cause, NETWORK)
    return isinstance(cause, LASTING) or (is_network and any(word in str(cause) for word in LASTING_WORDS))


def innermost(error: BaseException) -> str:
    """datasets wraps what went wrong; the message at the bottom, or of ours, is the one that names the cure."""
    while error.__cause__ is not None and not isinstance(error, BuilderError):
        error = error.__cause__
    text = without_query(error).strip() or type(error).__name__
    if is_refusal(error) and not isinstance(error, BuilderError):
        text += ": run `hf auth login` with an account that may read it, or take fresh links"
    return text
