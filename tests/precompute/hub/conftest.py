"""The tests of the Hub share a Hub on loopback, and the made-up shards of the tests of precompute."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from builders.archives import backoff
from precompute.hub import follow, push_loop, retry
from tests.support.loopback_hub import LoopbackHub
from tests.support.processes import start  # noqa: F401  a fixture
from tests.support.waiting import hurried

TRIED = 60.0  # seconds of pauses of one question: seven tries


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A fresh Hub, the client in this process turned to it, a token that may write, and waits that a test can sit out."""
    constants = huggingface_hub.constants
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_owner")
        monkeypatch.setattr(backoff, "cut_short", hurried)
        monkeypatch.setattr(retry, "HOUR", TRIED)
        monkeypatch.setattr(push_loop, "POLL", 0.02)
        monkeypatch.setattr(push_loop, "OUTAGE", 0.05)
        monkeypatch.setattr(follow, "RETRY", 0.05)
        huggingface_hub.utils.disable_progress_bars()
        yield hub
    huggingface_hub.close_session()
