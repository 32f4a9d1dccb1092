"""Models are found where they are: in a folder, at the top of a repository or in a part of it, without a network."""

import json
from pathlib import Path

import pytest

from precompute.encode.models import locate_model
from precompute.errors import ModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache that holds user/model, at one commit; the Hub itself cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--user--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize("place", ["", "text_encoder"])
def test_cached_model_is_found_wherever_it_lies_in_its_repository(cache: Path, place: str) -> None:
    (cache / place).mkdir(parents=True)
    (cache / place / "config.json").write_text(json.dumps({"model_type": "t5"}))
    location = locate_model("--text-encoder", "user/model", ["text_encoder"])
    assert (location.name, location.subfolder, location.revision) == ("user/model", place, COMMIT)
    assert location.config == {"model_type": "t5"}


def test_model_that_is_not_cached_says_that_the_hub_cannot_be_reached(cache: Path) -> None:
    with pytest.raises(
        ModelError, match="--vae user/model: not in the local cache, and the Hub cannot be reached"
    ):
        locate_model("--vae", "user/model", ["vae"])
