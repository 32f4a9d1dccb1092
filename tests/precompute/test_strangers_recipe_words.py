"""A stranger's recipe with control characters in each of its words: no command of ours prints, draws or writes one as it stands."""

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loader.format import MANIFEST, fingerprint
from precompute import choose, pack, preview, run, verify
from tests.support.finished_folder import RECIPE, write_shards
from tests.support.mutations import places

ESCAPES = "\x1b]0;pwned\x07\x1b[2J\u202e\r: whole. 6 written"


def at(recipe: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        recipe = recipe[step]
    return recipe


STRINGS = [path for path in places(RECIPE)[1:] if isinstance(at(RECIPE, path), str)]


@contextlib.contextmanager
def hostile(folder: Path, paths: list[tuple[Any, ...]]) -> Iterator[Path]:
    """Shards whose recipe says control characters at these places, in manifest and markers, which agree."""
    documents = {path: path.read_text() for path in (folder / MANIFEST, *folder.glob("train-*.json"))}
    for path, text in documents.items():
        content = json.loads(text)
        recipe = copy.deepcopy(content["recipe"])
        for place in paths:
            at(recipe, place[:-1])[place[-1]] += ESCAPES
        content |= {"recipe": recipe, "fingerprint": fingerprint(recipe)}
        path.write_text(json.dumps(content))
    yield folder
    for path, text in documents.items():
        path.write_text(text)


def told(capsys: pytest.CaptureFixture[str], program: Any, *arguments: object) -> str:
    """What a command prints; whether it ends well is no matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [program.__name__, *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            program.main()
    out, err = capsys.readouterr()
    return re.sub(r"\r[^\n]*$", "", out + err)  # a bar that is wiped


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("words") / "latents", units=2, samples=2)


def test_no_command_prints_a_word_as_it_stands(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(STRINGS) > 10
    for number, places_ in enumerate([*([path] for path in STRINGS), STRINGS]):
        with hostile(shards, places_):
            output = tmp_path / str(number)
            said = told(capsys, verify, shards, "--decode", 2)
            if places_[0][0] in ("dataset", "image_encoder"):
                said += told(capsys, preview, shards, "--to", output)
            if len(places_) > 1:
                said += told(capsys, pack, shards, "--output", output / "packed")
                said += told(capsys, choose, shards, "--output", output / "kept.parquet")
                said += told(
                    capsys,
                    run,
                    "--beside",
                    shards,
                    "--output",
                    output / "layer",
                    "--text-encoder",
                    "second=toy",
                    "--dtype",
                    "float32",
                )
        for line in said.split("\n"):
            assert line.isprintable(), (places_, line)
        page = output / "report.html"
        if page.exists():
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", page.read_text()), places_
