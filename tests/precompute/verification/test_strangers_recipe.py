"""A recipe that a stranger wrote opens nothing of the user's: no folder, no address, no dataset, unless the user names it."""

from types import SimpleNamespace
from typing import Any

import pytest

from precompute.errors import UsageError
from precompute.input import recorded_source
from precompute.input.recorded_source import Where, open_recorded


def opened(monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], where: Where) -> list[Any]:
    """What is opened of a source for shards of this recipe."""
    asked: list[Any] = []

    def records(source: Any) -> Any:
        asked.append(source)
        return SimpleNamespace(units=[0])

    monkeypatch.setattr(recorded_source, "open_records", records)
    split = SimpleNamespace(plan={"units": 1})
    open_recorded(SimpleNamespace(recipe={"dataset": recipe}, splits={"train": split}), "train", where)  # type: ignore[arg-type]
    return asked


HOSTILE: list[dict[str, Any]] = [
    {"path": "/home/user/photographs"},
    {"path": "imagefolder", "options": ["data_dir=/home/user"]},
    {"path": "http://169.254.169.254/latest"},
    {"path": "builders/folder", "data_dir": "/home/user"},
    {"path": "builders/webdataset", "data_dir": ".."},
    {"path": "builders/sa1b", "links": "http://10.0.0.1/links.txt"},
    {"path": "builders/coco", "data_dir": ["a"]},
    {"path": "builders/coco", "data_dir": {"a": "/home"}},
    {"path": "builders/coco", "min_image_size": "\x1b[2J"},
]


@pytest.mark.parametrize("recipe", HOSTILE, ids=lambda recipe: str(recipe)[:40])
def test_what_only_the_recipe_names_stays_closed(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="give that yourself to have it opened") as error:
        opened(monkeypatch, recipe, Where())
    assert "\x1b" not in str(error.value)
    assert opened(monkeypatch, recipe, Where(dataset="builders/demo"))[0].dataset == "builders/demo"


def test_published_archives_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {
        "path": "builders/diffusiondb",
        "name": "2m",
        "min_image_size": 256,
        "safety_threshold": 0.2,
        "lossless": False,
    }
    assert len(opened(monkeypatch, {**recipe, "caption_cleaning": "light"}, Where())) == 1
