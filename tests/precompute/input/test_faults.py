"""What the Hub's client raises: whether a later try may help, and what is waited for nothing."""

import ssl
from pathlib import Path

import pytest
from huggingface_hub.utils import httpx

from precompute.hub.retry import PushError, ask
from precompute.input.faults import may_pass
from tests.support.raw.server import serve


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError(
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"
        ),
        httpx.ProxyError("407 Proxy Authentication Required"),
        httpx.LocalProtocolError("Illegal header value b'Bearer hf_\\n'"),
        httpx.UnsupportedProtocol("Request URL has an unsupported protocol 'htp://'."),
    ],
)
def test_what_no_later_try_can_mend_is_not_waited_for(error: Exception, waits: list[float]) -> None:
    def question() -> None:
        raise error

    with pytest.raises(PushError, match="owner/x: failed"):
        ask("owner/x", question)
    assert not waits


def test_an_illegal_header_is_no_fault_of_the_network(tmp_path: Path) -> None:
    with serve(tmp_path) as server, httpx.Client() as client, pytest.raises(httpx.RequestError) as raised:
        client.get(server.url, headers={"authorization": "Bearer hf_\n"})
    assert not may_pass(raised.value)


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.ProxyError("502 Bad Gateway")]
)
def test_what_may_pass_is(error: Exception) -> None:
    assert may_pass(error)


def test_a_certificate_that_does_not_hold_stays_so_below_what_wraps_it() -> None:
    wrapped = httpx.ConnectError("failed")
    wrapped.__cause__ = httpx.ConnectError(
        str(ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED]"))
    )
    assert not may_pass(wrapped)
