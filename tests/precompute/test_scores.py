"""Scores that a dataset brings are selectable by name: from the raw archives through the command to `make_loader(where=...)`."""

import json
from pathlib import Path

import pytest

from loader import make_loader
from tests.support.launching import TOY, run_here
from tests.support.raw import diffusiondb
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

FLAGS = (*TOY, "--resolutions", "64")


def test_the_columns_of_img2dataset_are_selected_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"a": (6.5, 0.31), "b": (4, 0.35), "c": (5.5, None), "d": (7.25, 0.2), "e": None}
    members = []
    for key, found in scores.items():
        about = {"url": f"http://a.test/{key}", "exif": {"Make": "x"}, "status": "success"}
        about |= {"aesthetic": found[0], "similarity": found[1]} if found else {}
        members += [
            (f"{key}.jpg", jpeg(1)),
            (f"{key}.json", json.dumps(about).encode()),
            (f"{key}.txt", key.encode()),
        ]
    write_tar(tmp_path / "raw" / "00000.tar", members)
    output = tmp_path / "out"
    run_here(
        monkeypatch, capsys, "builders/webdataset", "--data-dir", tmp_path / "raw", "--output", output, *FLAGS
    )
    for where, keys in (("aesthetic > 5", "acd"), ("aesthetic > 5 and similarity > 0.3", "a"), ("similarity is null", "ce"),
                        ("url like '%/b'", "b")):  # fmt: skip
        batches = make_loader(output, 1, where=where, extras=["caption", "aesthetic"])
        found = {batch["caption"][0]: batch["aesthetic"][0] for batch in batches}
        assert found == {key: scores[key] and scores[key][0] for key in keys}
    with pytest.raises(ValueError, match=r"There are: .*aesthetic"):
        make_loader(output, 1, where="beauty > 5")


def test_the_nsfw_scores_of_diffusiondb_are_selected_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    diffusiondb.make(tmp_path / "raw")
    output = tmp_path / "out"
    given = ("builders/diffusiondb", "--data-dir", tmp_path / "raw", "--options", "safety_threshold=1")
    run_here(monkeypatch, capsys, *given, "--output", output, *FLAGS)
    names = ["key", "image_nsfw", "prompt_nsfw"]
    batches = list(make_loader(output, 1, extras=names))
    everything = {batch["key"][0]: [batch[name][0] for name in names[1:]] for batch in batches}
    most = [
        max(score for score in scores if score is not None)
        for scores in zip(*everything.values(), strict=True)
    ]
    safe = {key for key, (image, prompt) in everything.items() if image < most[0] and prompt < most[1]}
    assert 0 < len(safe) < len(everything)
    chosen = make_loader(
        output, 1, where=f"image_nsfw < {most[0]} and prompt_nsfw < {most[1]}", extras=["key"]
    )
    assert {batch["key"][0] for batch in chosen} == safe
