"""The dataset card: true to the manifest, safe whatever a recipe says, and what people wrote in it stays."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

import builders
from loader.format import Manifest, Split
from precompute.hub.dataset_card import render_card, source_info
from tests.support.finished_folder import RECIPE, write_manifest, write_shards


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_manifest(write_shards(tmp_path))


def header(card: str) -> dict[str, Any]:
    return DatasetCard(card).data.to_dict()


def with_recipe(manifest: Manifest, **changes: Any) -> Manifest:
    return Manifest({**RECIPE, **changes}, manifest.fields, manifest.splits)


def test_the_header_leads_load_dataset_to_the_tars(manifest: Manifest) -> None:
    other = Split(manifest.splits["train"].plan, 0, (), {})
    both = Manifest(manifest.recipe, manifest.fields, {**manifest.splits, "empty": other})
    data = header(render_card(both, "me/x"))
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "train-[0-9]*.tar"}]}
    ]
    assert data["size_categories"] == ["n<1K"] and data["task_categories"] == ["text-to-image"]


def test_the_card_says_what_is_there(manifest: Manifest) -> None:
    card = render_card(manifest, "me/x", sheet=True)
    for part in (
        "| train | 15 | 18 |",
        "| train | `too_small` | 3 |",
        "(8, 4, 4) float16",
        "(T, 6) float16",
        "preview.png",
    ):
        assert part in card
    assert manifest.fingerprint in card and "hf://datasets/me/x" in card
    assert "preview.png" not in render_card(manifest, "me/x")


def test_a_card_made_again_is_the_same(manifest: Manifest) -> None:
    card = render_card(manifest, "me/x")
    assert render_card(manifest, "me/x", card) == card


def test_text_and_header_by_hand_are_kept(manifest: Manifest) -> None:
    by_hand = (
        "---\nlicense: mit\nlanguage:\n- en\nconfigs:\n- config_name: old\n---\n\n# My title\n\nMy words.\n"
    )
    card = render_card(manifest, "me/x", by_hand)
    data = header(card)
    assert (data["license"], data["language"]) == ("mit", ["en"]) and "license_name" not in data
    assert data["configs"][0]["config_name"] == "default"  # which tars there are is not a matter of taste
    assert "# My title\n\nMy words." in card
    more = card + "\nMore words.\n"
    again = render_card(manifest, "me/x", more)
    assert (
        again == render_card(manifest, "me/x", again)
        and again.count("My words.") == again.count("More words.") == 1
    )


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>", "a|b\n| c", "x`y`z", "![x](http://example.invalid)", "---\nlicense: mit"],
)
def test_nothing_in_a_recipe_becomes_markup(manifest: Manifest, name: str) -> None:
    card = render_card(with_recipe(manifest, dataset={"path": name, "name": name}), "me/x")
    body = card.split("---\n", 2)[2]
    prose = re.sub(r"`[^`\n]*`", "", body)  # what stands in a code span is shown as it is
    assert "<script" not in prose.replace("\\<script", "") and "![x](" not in prose
    assert header(card)["pretty_name"] == f"{name} latents" and header(card).get("license") is None
    rows = [line for line in body.splitlines() if line.startswith("| `dataset.")]
    assert len(rows) == 2 and all(row.replace("\\|", "").count("|") == 3 for row in rows)


def test_every_builder_of_ours_has_a_licence_and_a_homepage(manifest: Manifest) -> None:
    for name in set(builders.names()) - {"folder", "webdataset"}:
        known = source_info(with_recipe(manifest, dataset={"path": f"builders/{name}"}))
        assert known.licence and known.homepage.startswith("https://"), name
    assert source_info(with_recipe(manifest, dataset={"path": "builders/os"})).licence == ""


def test_tags_and_name_by_hand_are_kept(manifest: Manifest) -> None:
    by_hand = "---\npretty_name: My photographs\ntags:\n- cats\n---\n\nx\n"
    first = render_card(manifest, "me/x", by_hand)
    for card in (first, render_card(manifest, "me/x", first)):
        assert header(card)["pretty_name"] == "My photographs" and header(card)["tags"] == ["cats"]
