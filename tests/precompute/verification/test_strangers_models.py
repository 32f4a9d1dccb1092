"""Models that a stranger's recipe names: a Hub id at a commit is opened, and what is on this machine is not, unless the user names it."""

from pathlib import Path
from typing import Any

import pytest

from precompute.encode.models import recorded_name
from precompute.errors import ModelError
from precompute.report.figures import open_tokenizer
from precompute.verification import recipe_models
from precompute.verification.recipe_models import Models, recipe_image_encoder, recipe_text_encoders
from tests.support import hub_cache, tiny_models
from tests.support.hub_cache import cached

COMMIT = "0123456789abcdef" * 2 + "01234567"
HOSTILE: list[dict[str, Any]] = [
    {"model": "/home/user/model"},
    {"model": "/home/user/model", "revision": ""},
    {"model": "/home/user/model", "revision": COMMIT},
    {"model": "~/model", "revision": COMMIT},
    {"model": "../model", "revision": COMMIT},
    {"model": "a/../../model", "revision": COMMIT},
    {"model": "owner/name"},
    {"model": "owner/name", "revision": "main"},
    {"model": "owner/name", "revision": "../.."},
    {"model": "owner/name", "revision": COMMIT + "\n"},
    {"model": "owner/name", "revision": None},
    {"model": "owner/name\x1b[2J", "revision": COMMIT},
    {"model": "https://10.0.0.1/model", "revision": COMMIT},
    {"model": "openclip:local-dir:/home/user/model"},
    {"model": "openclip:../model"},
    {"model": ["owner/name"], "revision": COMMIT},
    {"model": "", "revision": COMMIT},
    {},
]


@pytest.mark.parametrize("spec", HOSTILE, ids=lambda spec: repr(spec)[:60])
def test_what_lies_here_stays_closed(spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*arguments: Any) -> None:
        raise AssertionError(f"opened {arguments}")

    for name in ("open_image_encoder", "open_text_encoder"):
        monkeypatch.setattr(recipe_models, name, opened)
    with pytest.raises(ModelError, match="give that folder as --vae"):
        recipe_image_encoder({"image_encoder": spec}, Models())
    encoders, (note,) = recipe_text_encoders({"text_encoders": [spec]}, Models())
    assert not encoders and "give that folder as --text-encoder" in note
    with pytest.raises((ValueError, KeyError)):
        open_tokenizer({"model": None, **spec})


@pytest.mark.parametrize(
    "spec, name",
    [
        ({"model": "toy"}, "toy"),
        ({"model": "owner/name", "revision": COMMIT}, f"owner/name@{COMMIT}"),
        ({"model": "gpt2", "revision": COMMIT}, f"gpt2@{COMMIT}"),
        (
            {"model": "openclip:hf-hub:apple/DFN5B-CLIP-ViT-H-14-378"},
            "openclip:hf-hub:apple/DFN5B-CLIP-ViT-H-14-378",
        ),
        ({"model": "openclip:ViT-B-32/laion2b_s34b_b79k"}, "openclip:ViT-B-32/laion2b_s34b_b79k"),
    ],
)
def test_what_a_recipe_of_ours_names(spec: dict[str, Any], name: str) -> None:
    assert recorded_name(spec) == name


def test_the_one_that_the_user_names_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recipe_models, "open_image_encoder", lambda name, *_: name)
    assert recipe_image_encoder({"image_encoder": HOSTILE[0]}, Models(vae=str(tmp_path))) == str(tmp_path)  # type: ignore[comparison-overlap]


def test_no_folder_of_the_working_directory_passes_for_a_hub_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_models.save_word_tokenizer(tmp_path / "owner" / "name", end=True)
    cached(tmp_path / "cache", "owner/name", monkeypatch)
    monkeypatch.chdir(tmp_path)
    spec = {"model": "owner/name", "revision": hub_cache.COMMIT}
    with pytest.raises(ModelError, match=r"--vae owner/name@\w+: a folder owner/name lies"):
        recipe_image_encoder({"image_encoder": spec}, Models())
    with pytest.raises((OSError, ValueError)):
        open_tokenizer(spec)


def test_what_is_opened_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(recipe_models, "open_image_encoder", lambda name, *_: name)
    spec = {"model": "owner/name", "revision": COMMIT}
    recipe_image_encoder({"image_encoder": spec}, Models())
    assert f"--vae owner/name@{COMMIT}\n" in capsys.readouterr().err
    recipe_image_encoder({"image_encoder": spec}, Models(vae="mine"))
    recipe_image_encoder({"image_encoder": {"model": "toy"}}, Models())
    assert not capsys.readouterr().err
