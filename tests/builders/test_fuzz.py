"""Damaged pictures, tables, facts and captions: no exception out of a build or a stream, no hang, every file accounted.

LATENTMILL_FUZZ=10000 tries so many mutations of each kind instead of two thousand.
"""

import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

import builders
from builders.core import images
from builders.core.errors import ConfigError
from tests.builders.conftest import Build
from tests.support.judges import listed_by_find
from tests.support.mutations import ODD, mutated
from tests.support.raw.archive import dumps, write_tar, write_zip
from tests.support.raw.photos import encode, jpeg, photo, png, webp

MUTATIONS = int(os.environ.get("LATENTMILL_FUZZ", "2000"))
SIZE = (96, 80)
PICTURES = {
    "jpg": jpeg(0, SIZE),
    "exif.jpg": jpeg(1, SIZE, orientation=6),
    "progressive.jpg": encode(photo(2, SIZE), "JPEG", progressive=True),
    "png": png(0, SIZE),
    "webp": encode(photo(1, SIZE), "WEBP"),
    "lossless.webp": webp(2, SIZE),
    "gif": encode(photo(3, SIZE), "GIF"),
    "tif": encode(photo(3, SIZE), "TIFF"),
    "avif": encode(photo(4, SIZE), "AVIF"),
}


@pytest.fixture(params=list(PICTURES))
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of pictures of one format, each with other damage, and a caption beside each."""
    root = tmp_path / "damaged"
    root.mkdir()
    suffix = request.param.rpartition(".")[2]
    for seed in range(MUTATIONS):
        (root / f"{seed:05d}.{suffix}").write_bytes(mutated(PICTURES[request.param], seed))
        (root / f"{seed:05d}.txt").write_bytes(b"a photograph")
    return root


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_picture_is_rejected_or_reads_as_pillow_reads_it(damaged: Path, build: Build) -> None:
    rows = build(
        "folder",
        data_dir=str(damaged),
        streaming=True,
        keep_rejected=True,
        check_pixels=True,
        min_image_size=1,
        color_profile="ignore",
    )
    assert len(rows) == MUTATIONS == len(listed_by_find(damaged)) / 2
    good = [row for row in rows if row["reject"] is None]
    for row in good:
        pixels = np.asarray(images.decode_rgb(row["image"]["bytes"], color_profile="ignore"))
        with Image.open(io.BytesIO(row["image"]["bytes"])) as theirs:
            assert theirs.format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO")
            theirs.load()
            upright = theirs if theirs.format == "TIFF" else ImageOps.exif_transpose(theirs)
            assert pixels.shape == (row["height"], row["width"], 3) == (*upright.size[::-1], 3)
            if theirs.mode == "RGB":
                assert (pixels == np.asarray(upright)).all()
    reasons = {row["reject"] for row in rows} - {None}
    assert reasons <= {"undecodable", "too_small", "too_large", "unsupported_format"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_map_mode_takes_the_same_damage(build: Build, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    root.mkdir()
    for name, data in PICTURES.items():
        suffix = name.rpartition(".")[2]
        for seed in range(MUTATIONS // len(PICTURES)):
            (root / f"{name}-{seed}.{suffix}").write_bytes(mutated(data, seed))
            (root / f"{name}-{seed}.txt").write_bytes(b"a photograph")
    options = {"data_dir": str(root), "keep_rejected": True, "min_image_size": 1}
    streamed = build("folder", streaming=True, **options)
    assert len(streamed) == MUTATIONS // len(PICTURES) * len(PICTURES)
    assert build("folder", **options) == streamed


@pytest.mark.parametrize("streaming", [False, True])
def test_a_picture_damaged_in_its_middle_raises_with_a_cure_or_is_counted(
    streaming: bool, build: Build, tmp_path: Path
) -> None:
    data = bytearray(PICTURES["lossless.webp"])
    middle = len(data) // 2
    data[middle : middle + 16] = b"\xff\xc0" * 8
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.webp").write_bytes(data)
    (tmp_path / "photos/a.txt").write_bytes(b"a")
    options = {"data_dir": str(tmp_path / "photos"), "min_image_size": 1, "streaming": streaming}
    rows = builders.load_dataset("builders/folder", split="train", cache_dir=str(tmp_path / "c"), **options)
    with pytest.raises(images.UndecodableImage, match=r"check_pixels=True"):
        list(rows)
    (row,) = build("folder", check_pixels=True, keep_rejected=True, **options)
    assert row["reject"] == "undecodable"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_damaged_table_is_read_or_named(kind: str, build: Build, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    names = [f"{number}.jpg" for number in range(4)]
    for name in names:
        (root / name).write_bytes(PICTURES["jpg"])
    captions = ["a cat", 'a "quoted", word', "図書館", "x" * 700]
    table = datasets.Dataset.from_dict({"file_name": names, "caption": captions})
    path = root / f"metadata.{kind}"
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind](str(path))
    whole, options = path.read_bytes(), {"data_dir": str(root), "keep_rejected": True, "min_image_size": 1}
    told = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(whole, seed))
        try:
            rows = build("folder", streaming=seed % 20 > 0, **options)
        except ConfigError as error:
            assert f"metadata.{kind}" in str(error)
            told += 1
        else:
            assert set(names) <= {row["source"] for row in rows}
    assert 0 < told < MUTATIONS


def test_a_damaged_caption_file_is_text_or_a_reason(build: Build, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    text = "Ein Café — 図書館 &amp; <b>mehr</b> http://x.com/y"
    texts = [text.encode(encoding) for encoding in ("utf-8", "utf-16")]
    for seed in range(4 * MUTATIONS):
        (root / f"{seed:05d}.jpg").write_bytes(PICTURES["jpg"])
        (root / f"{seed:05d}.txt").write_bytes(mutated(texts[seed % 2] * (1 + seed % 5), seed))
    rows = build("folder", data_dir=str(root), streaming=True, keep_rejected=True, min_image_size=1)
    assert len(rows) == 4 * MUTATIONS
    for row in rows:
        assert row["reject"] in (None, "unreadable_text", "empty_caption", "caption_too_long")
        assert (row["caption"] is None) == (row["reject"] is not None)


def test_damaged_facts_in_a_tar_cost_no_picture(build: Build, tmp_path: Path) -> None:
    facts = json.dumps({"caption": "in the json", "n": [1, {"deep": None}], "w": 1e9, "s": "\u56f3"}).encode()
    members = []
    for seed in range(2 * MUTATIONS):
        members += [(f"{seed:05d}.jpg", PICTURES["jpg"]), (f"{seed:05d}.json", mutated(facts, seed))]
    write_tar(tmp_path / "tars/0.tar", members)
    rows = build(
        "webdataset", data_dir=str(tmp_path / "tars"), streaming=True, keep_rejected=True, min_image_size=1
    )
    assert len(rows) == 2 * MUTATIONS
    assert {row["reject"] for row in rows} <= {None, "missing_caption", "empty_caption"}


@pytest.mark.parametrize("name", ["cc12m", "diffusiondb"])
def test_a_fact_that_no_column_holds_is_none_and_costs_no_picture(
    name: str, build: Build, tmp_path: Path
) -> None:
    """It would end a build in map mode: a width that is a text, a seed of twenty digits, half a character."""
    raw = tmp_path / "raw"
    values = [*ODD, 2**40, "12", "1.5", 7]
    places = ("url", "original_width", "original_height") if name == "cc12m" else ("se", "st", "c", "sa")
    facts = {
        f"{place}-{number}": {"caption": "a cat", "p": "a cat", place: value}
        for place in places
        for number, value in enumerate(values)
    }
    if name == "cc12m":
        members = [
            pair
            for key, fact in facts.items()
            for pair in ((f"{key}.jpg", PICTURES["jpg"]), (f"{key}.json", dumps(fact)))
        ]
        write_tar(raw / "cc12m-train-0000.tar", members)
    else:
        parameters = dumps({f"{key}.webp": fact for key, fact in facts.items()})
        pictures = [(f"{key}.webp", PICTURES["webp"]) for key in facts]
        write_zip(
            raw / "diffusiondb-large-part-1/part-000001.zip", [*pictures, ("part-000001.json", parameters)]
        )
        scores = [
            {"image_name": f"{key}.webp", "part_id": 1, "image_nsfw": 0.0, "prompt_nsfw": 0.0}
            for key in facts
        ]
        pq.write_table(pa.Table.from_pylist(scores), raw / "metadata-large.parquet")
    mapped, streamed = (
        build(name, data_dir=str(raw), min_image_size=1, streaming=streaming) for streaming in (False, True)
    )
    assert len(mapped) == len(facts)
    assert mapped == streamed
    numbers = {row[column] for row in mapped for column in ("original_width", "step") if column in row}
    assert numbers == {None, -1, 0, 1, 7, 12}
