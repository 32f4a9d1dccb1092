"""`--beside BASE --captions NAME=FILE`: captions of another model as a layer, drawn with those of the base as if all had been made at once."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loader import make_loader
from loader.format import MANIFEST, Manifest
from precompute import pack, preview, verify
from precompute.hub.dataset_card import render_card
from tests.support.batches import all_same
from tests.support.launching import run_here
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

KEYS = "abcdefgh"
# Two of a, one of most, none of h; and one of a row that there is not.
ADDED = {"a": ["new a", "another a"], **{key: [f"new {key}"] for key in "bcdefg"}, "x": ["new x"]}
FIRST, SECOND = "toy?pooled", "second=toy?layer=-2"
TEXT = ("--text-encoder", FIRST, "--text-encoder", SECOND)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw/, and the file of captions."""
    root = tmp_path_factory.mktemp("added")
    for unit, keys in enumerate((KEYS[:4], KEYS[4:])):
        members = [(f"{key}.jpg", b"<html>" if key == "d" else jpeg(unit)) for key in keys]
        members += [(f"{key}.txt", f"own {key}".encode()) for key in keys]
        write_tar(root / "raw" / f"{unit}.tar", sorted(members))
    rows = [
        {"key": f"{int(key > 'd')}-{key}", "captions": texts}
        if key != "x"
        else {"key": "x", "captions": texts}
        for key, texts in ADDED.items()
    ]
    (root / "re.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *arguments: run_here(monkeypatch, capsys, *arguments)


def source(folder: Path, output: Path) -> tuple[Any, ...]:
    given = ("builders/webdataset", "--data-dir", folder / "raw", "--output", output, "--vae", "toy", *TEXT)
    return (*given, *NUMBERS, "--resolutions", "64")


NUMBERS = ("--dtype", "float32", "--batch-size", "3", "--num-threads", "1")


def layer(folder: Path, output: Path, *more: str, text: tuple[str, ...] = TEXT) -> tuple[Any, ...]:
    given = ("--beside", folder / "base", "--output", output, "--captions", f"new={folder / 're.jsonl'}")
    return (*given, *text, *NUMBERS, *more)


@pytest.fixture
def made(folder: Path, run: Any) -> Path:
    if not (folder / "base").exists():
        run(*source(folder, folder / "base"))
        whole = (*source(folder, folder / "whole"), "--captions", f"new={folder / 're.jsonl'}")
        run(*whole, "--captions-order", "behind", "--max-captions", "3")
        (folder / "told").write_text(run(*layer(folder, folder / "new", "--max-captions", "2")))
    return folder


def batches(path: Any, **options: Any) -> list[Any]:
    loader = make_loader(
        path,
        2,
        **{"extras": ["key", "caption", "caption_kind"], "pooled": True, "drop_last": False, **options},
    )
    found = [batch for _ in range(3) for batch in loader]
    loader.close()
    return found


@pytest.mark.parametrize("captions", ["first", "random", {"new": 3, "caption": 1}, {"new": 1}])
def test_drawn_beside_the_base_they_are_what_is_drawn_of_all_made_at_once(made: Path, captions: Any) -> None:
    joined, whole = (
        batches((made / "base", made / "new"), captions=captions),
        batches(made / "whole", captions=captions),
    )
    assert len(joined) == len(whole) == 12
    assert all_same(joined, whole)
    if captions == {"new": 1}:
        assert {batch for one in joined for batch in one["caption"]} == {
            *(text for key in "abcefg" for text in ADDED[key]), "own h"
        }  # fmt: skip


def test_the_account_and_the_layer_say_who_matched(made: Path) -> None:
    told = (made / "told").read_text()
    assert "captions from elsewhere: new: 1 of 8 rows of the file match no row, 1 records have none" in told
    manifest = Manifest.from_json((made / "new" / MANIFEST).read_bytes())
    assert [field.name for field in manifest.fields] == [
        "caption_latents+new", "caption_pooled+new", "caption_latents_second+new"
    ]  # fmt: skip
    assert manifest.splits["train"].caption_kinds == {"new": 7}
    assert manifest.splits["train"].rejected == {"undecodable": 1}
    rows = {
        row["key"][2:]: row
        for path in (made / "new").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    assert rows["a"]["captions+new"] == ADDED["a"] and rows["a"]["caption_tokens+new"] == [77, 77]
    assert rows["h"]["captions+new"] == [] == rows["h"]["caption_tokens_second+new"]
    assert not (made / "new" / "null_caption.npz").exists()


def test_verify_preview_and_card_know_it(made: Path, tmp_path: Path) -> None:
    config = verify.Config(
        str(made / "new"), beside=str(made / "base"), decode=7, text_encoder=("toy", SECOND)
    )
    assert not verify.verify(config).findings
    preview.run(preview.Config(str(made / "new"), to=tmp_path, num_samples=3))
    assert "own a" in (tmp_path / "report.html").read_text()
    card = render_card(Manifest.from_json((made / "new" / MANIFEST).read_bytes()), "USER/REPO")
    assert "captions of kind `new`" in card and "KEY.caption_latents+new.npy" in card


def test_packed_it_is_drawn_alike(made: Path, tmp_path: Path) -> None:
    pack.run(pack.Config((str(made / "base"), str(made / "new")), tmp_path / "packed"))
    captions = {"new": 3, "caption": 1}
    found, expected = (
        batches(path, captions=captions, shuffle=False)
        for path in (tmp_path / "packed", (made / "base", made / "new"))
    )
    assert all_same(found, expected)
    assert not verify.verify(verify.Config(str(tmp_path / "packed"))).findings


@pytest.mark.parametrize(("given", "told"), [("a-b=re.jsonl", "'a-b' is no name"), ("b=re.txt", "ends in")])
def test_a_file_or_name_that_cannot_be_is_refused_before_any_work(
    made: Path, run: Any, capsys: pytest.CaptureFixture[str], given: str, told: str
) -> None:
    arguments = [given if str(word).startswith("new=") else word for word in layer(made, made / "odd")]
    with pytest.raises(SystemExit):
        run(*arguments)
    assert told in capsys.readouterr().err and not list((made / "odd").glob("*.tar"))
