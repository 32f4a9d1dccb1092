"""The contact sheet: a source beside what its latents decode to, and whatever a caption may be, no crash."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFont

from loader.format import Field
from loader.printable import one_line
from precompute import preview, run, verify
from precompute.errors import ModelError, UsageError
from precompute.report import sheet
from precompute.report.figures import describe_rows, near_pairs, perceptual_hash
from precompute.report.sheet import GAP, LINES, MARGIN, PAD, TEXT, TILE, draw_sheet, font_of, wrap
from precompute.report.tiles import Card, Tile
from precompute.shards import sample_reader
from precompute.shards.sample_reader import pick_samples, taken_of
from precompute.shards.store import Store
from precompute.verification.decode_check import psnr
from precompute.verification.read_folder import read_markers
from precompute.verification.verdict import last_verdict
from tests.support.finished_folder import RECIPE, write_shards
from tests.support.forked import run_command
from tests.support.six_scripts import PHRASES

HOSTILE = [
    "<script>alert(1)</script>",
    "\x00\x07\x1b[31mred\r\nnext\u202egnp.exe\u2066",
    "写真 العربية हिन्दी ру́сский 🐍🧑‍🚀 e\u0301",
    "x" * 5000,
    "word " * 2000,
    "\ud800 lone surrogate",
    " ",
    "",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("preview") / "latents"
    run.run(
        run.Config(
            "builders/demo", output, vae="toy", text_encoder=("toy",), resolutions=(128, 256), dtype="float32"
        )
    )
    preview.run(preview.Config(str(output), num_samples=6))
    return output


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def card(caption: str = "a caption", tiles: int = 3) -> Card:
    pixels = np.full((64, 64, 3), 128, np.uint8)
    return Card("key", one_line(caption), [Tile("source", pixels)] + [Tile("64", pixels, 20.0)] * (tiles - 1))


def test_the_sheet_shows_each_source_beside_what_its_latents_decode_to(demo: Path) -> None:
    sheet = load(demo / "preview.png")
    left, top = MARGIN + PAD, MARGIN + 84 + PAD
    tiles = [sheet[top : top + TILE, left + i * (TILE + GAP) :][:, :TILE] for i in range(3)]
    source, small, large = tiles
    assert source.std() > 20  # a photograph, no blank
    assert 15 < psnr(small, source) < psnr(large, source)


def test_the_shards_are_left_as_they_were(demo: Path) -> None:
    assert verify.verify(verify.Config(str(demo))).findings == []


@pytest.mark.parametrize("caption", HOSTILE)
def test_no_caption_breaks_the_sheet(caption: str) -> None:
    sheet = draw_sheet(
        "title " + one_line(caption), "subtitle", [card(caption), card(), card(caption, tiles=1)]
    )
    assert sheet.width < 1700 and sheet.height < 1200


@pytest.mark.parametrize("count", [0, 1, 2, 3, 13])
def test_any_number_of_cards_makes_a_sheet(count: int) -> None:
    heights = draw_sheet("t", "s", [card()] * count).height
    assert heights >= draw_sheet("t", "s", [card()] * max(0, count - 2)).height


def test_printable_text_is_one_line_without_control_characters() -> None:
    for text in HOSTILE:
        clean = one_line(text)
        assert clean.isprintable() and "\n" not in clean
        clean.encode()
    assert one_line("a\tb\n c\u202e") == "a b c"


def test_what_no_font_can_draw_is_not_drawn_as_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sheet.drawable("a boat, déjà vu") == "a boat, déjà vu"
    assert sheet.drawable("\U00012000\U00012001\U00012002") == sheet.UNDRAWN  # cuneiform
    monkeypatch.setattr(sheet.features, "check", lambda name: False)
    assert sheet.drawable("קטנה") == sheet.UNDRAWN  # it would stand in the wrong order


def test_six_scripts_are_drawn_where_there_are_fonts_and_never_as_boxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = [name for name, phrases in PHRASES.items() if sheet.drawable(phrases[-1]) == phrases[-1]]
    assert "latin" in known
    if Path("/usr/share/fonts/opentype/noto").is_dir() and Path("/usr/share/fonts/truetype/noto").is_dir():
        assert known == [*PHRASES]
    monkeypatch.setattr(sheet, "fonts_of", lambda size: [ImageFont.load_default(size)])
    for name in PHRASES.keys() - {"latin"}:
        assert sheet.drawable(PHRASES[name][-1]) == sheet.UNDRAWN
    assert sheet.drawable("a cat that is called 猫 in Chinese") == "a cat that is called  in Chinese"
    drawn = np.asarray(draw_sheet("一只猫", "", [card("猫" * 30)]))
    assert (drawn == np.asarray(draw_sheet(sheet.UNDRAWN, "", [card("一" * 30)]))).all()


def test_the_report_says_when_it_was_verified_and_what_has_changed_since(demo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo, tmp_path / "latents"))
    assert "not verified yet" in last_verdict(folder)
    verify.run(verify.Config(str(folder)))
    assert last_verdict(folder).startswith("verified: whole, on 20")
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
    assert "before the shards changed" in last_verdict(folder)
    (folder / ".verified.json").write_text("[]")
    assert "not verified yet" in last_verdict(folder)
    assert verify.run(verify.Config(str(folder))) == 0


def test_the_sheet_takes_from_every_shape_of_a_unit_and_from_the_start_of_others() -> None:
    shapes = [SimpleNamespace(samples=5, bucket="8x8"), SimpleNamespace(samples=1, bucket="8x4")]
    assert taken_of(shapes, 4) == [3, 1]
    plain = [SimpleNamespace(samples=5, bucket=""), SimpleNamespace(samples=5, bucket="")]
    assert taken_of(plain, 7) == [5, 2] and taken_of(plain, 99) == [5, 5]


def test_the_sheet_is_spread_over_one_long_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(write_shards(tmp_path, units=1, samples=9)))
    picked = pick_samples(store, read_markers(store).markers, "train", 3)
    assert [sample.key for sample in picked] == ["u0-0", "u0-3", "u0-6"]
    monkeypatch.setattr(sample_reader, "REACH", 6)
    picked = pick_samples(store, read_markers(store).markers, "train", 3)
    assert [sample.key for sample in picked] == ["u0-0", "u0-2", "u0-4"]


def test_a_caption_from_right_to_left_begins_at_the_right() -> None:
    def ink(caption: str) -> float:
        """Where the caption's ink lies on its card, from 0 at the left to 1."""
        page = np.asarray(draw_sheet("", "", [card(caption)]).convert("L")).astype(int)
        top = MARGIN + 84 + PAD + TILE + 26
        dark = (page[top : top + 20, MARGIN + PAD : -MARGIN - PAD] < 128).any(0).nonzero()[0]
        return float(dark.mean() / (page.shape[1] - 2 * MARGIN - 2 * PAD))

    assert ink("boat") < 0.2
    assert sheet.is_backwards("1. سفينة") and not sheet.is_backwards("a boat, سفينة")
    if sheet.drawable("قارب") != sheet.UNDRAWN:
        assert ink("قارب") > 0.8


@pytest.mark.parametrize("text", ["one two three " * 30, "x" * 300, "short", "写真" * 100, "a " + "b" * 200])
def test_wrapped_lines_fit_and_lose_nothing_but_the_tail(text: str) -> None:
    lines = wrap(text, TEXT, 300, LINES)
    assert 1 <= len(lines) <= LINES
    assert all(font_of(text, TEXT).getlength(line) <= 300 for line in lines)
    whole = "".join("".join(lines).split())
    assert "".join(text.split()).startswith(whole.removesuffix("…"))
    assert whole.endswith("…") or len(whole) == len("".join(text.split()))


def test_without_vae_and_source_there_are_false_colours_and_a_note(tmp_path: Path) -> None:
    recipe = {
        "dataset": {"path": "photos-on-another-machine", "name": "default"},
        "image_encoder": {"model": "/not/here", "scale": 0.5, "shift": 0.0},
        "text_encoders": [],
        "resolutions": [32],
    }
    output = write_shards(tmp_path / "latents", recipe=recipe)
    preview.run(preview.Config(str(output)))
    page = (output / "report.html").read_text()
    assert "false colours" in page and "no source images" in page
    assert load(output / "preview.png").shape[1] > 200


def test_a_model_from_a_folder_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    folder = {"model": "gpt2", "subfolder": "", "revision": None, "weights": "0" * 64, "dtype": "float32"}
    recipe = {
        **RECIPE,
        "image_encoder": {**folder, "scale": 0.5, "shift": 0.0},
        "text_encoders": [{**folder, "name": "", "length": 77, "padding": "max_length"}],
    }
    output = write_shards(tmp_path / "latents", recipe=recipe)
    preview.run(preview.Config(str(output)))
    page = (output / "report.html").read_text()
    assert "give that folder as --vae" in page
    assert "no token lengths of caption_latents: its model came from a folder" in page
    with pytest.raises(ModelError, match="--vae: the shards were made with a model from a folder, 'gpt2'"):
        verify.verify(verify.Config(str(output), decode=1))


@pytest.mark.parametrize("padding", ["max_length", "masked"])
def test_a_caption_without_spaces_has_its_length(padding: str) -> None:
    """Its length is told in tokens of the template and it, where the tokenizer is at hand, and in characters."""
    encoder = {"model": "toy", "name": "", "padding": padding, "template": "a {}", "skip": 2}
    spec = Field("caption_latents", "caption_latents", "float16", (77, 6))
    manifest: Any = SimpleNamespace(fields=[spec], recipe={"text_encoders": [encoder]})
    row = {"status": "ok", "width": 64, "height": 64, "caption": "一只猫坐在窗台上"}
    figures = describe_rows([(0, pa.Table.from_pylist([row]))], manifest)
    assert figures.characters.tolist() == [8]
    assert figures.tokens["caption_latents"].tolist() == [8 * 3 + len("<a >") - 2]


def test_similar_images_are_paired_and_others_are_not() -> None:
    random = np.random.default_rng(0)
    images = random.normal(size=(40, 4, 32, 32)).astype(np.float32)
    images = np.cumsum(np.cumsum(images, 2), 3)  # smooth, as latents of photographs are
    images[30] = images[7] + 0.02 * images[7].std() * random.normal(size=(4, 32, 32))
    assert near_pairs(np.stack([perceptual_hash(image) for image in images])) == ([(7, 30)], 1)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (16, 24), (64, 40)])
def test_a_perceptual_hash_takes_any_size(size: tuple[int, int]) -> None:
    bits = perceptual_hash(np.random.default_rng(0).normal(size=(4, *size)).astype(np.float32))
    assert bits.shape == (32,)


def test_bad_flags_name_themselves(tmp_path: Path) -> None:
    output = str(write_shards(tmp_path / "latents"))
    for flags, message in [
        ({"num_samples": 0}, "--num-samples 0"),
        ({"split": "dev"}, "--split dev: there are train"),
    ]:
        with pytest.raises(UsageError, match=message):
            preview.run(preview.Config(output, **flags))
    with pytest.raises(UsageError, match="no shards there"):
        preview.run(preview.Config(str(tmp_path)))


def test_the_command_prints_where_the_files_are(tmp_path: Path) -> None:
    output = write_shards(tmp_path / "latents")
    result = run_command("precompute/preview.py", output, "--to", tmp_path / "seen")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "seen" / name) for name in ("preview.png", "report.html")]


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"--to .*: cannot write there \(.*\); name another folder"):
            preview.run(preview.Config(str(demo), to=place))


def test_a_source_that_was_named_and_is_not_there_is_an_error(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        preview.run(preview.Config(str(demo), to=tmp_path, data_dir=tmp_path / "nowhere"))
