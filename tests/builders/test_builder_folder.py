"""A folder of one's own: sidecars, tables, splits, and what is wrong with some of it."""

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from builders.core.errors import ConfigError, MissingSourceError
from tests.support.raw.photos import HTML, bomb, encode, jpeg, photo, png, truncated


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    root = tmp_path / "photos"
    root.mkdir()
    return root


def reasons(rows: Any) -> Any:
    return {row["source"]: row["reject"] for row in rows}


def test_sidecars_and_every_fault(build: Any, photos: Any, tmp_path: Path) -> None:
    (photos / "sub").mkdir()
    files = {
        "a.jpg": jpeg(0),
        "a.txt": "\ufeffA <b>red</b> car\n".encode(),
        "b.PNG": png(1),
        "b.caption": "ein Hund, größer".encode(),
        "sub/c d.jpeg": jpeg(2),
        "sub/c d.txt": b"third",
        "no-caption.jpg": jpeg(3),
        "empty-caption.jpg": jpeg(4),
        "empty-caption.txt": b" <p> \n",
        "lonely.txt": b"a caption without an image",
        "small.jpg": jpeg(5, (255, 300)),
        "small.txt": b"small",
        "cut.jpg": truncated(jpeg(6)),
        "cut.txt": b"cut",
        "bomb.png": bomb(20_000, 20_000),
        "bomb.txt": b"400 million pixels",
        "flat.png": bomb(0, 300),
        "flat.txt": b"no pixels at all",
        "moving.gif": encode(photo(0), "GIF", save_all=True, append_images=[photo(1)]),
        "moving.txt": b"animated",
        "zero.jpg": b"",
        "zero.txt": b"zero",
        "page.jpg": HTML,
        "page.txt": b"an error page",
        "wrong-name.jpg": png(7),
        "wrong-name.txt": b"a PNG named jpg",
        "latin.jpg": jpeg(8),
        "latin.txt": b"caf\xe9",
        ".hidden.jpg": jpeg(9),
        "notes.md": b"not a row",
    }
    for name, data in files.items():
        (photos / name).write_bytes(data)
    rows = build("folder", data_dir=str(photos), keep_rejected=True, streaming=True)
    assert reasons(rows) == {
        "a.jpg": None,
        "b.PNG": None,
        "bomb.png": "too_large",
        "cut.jpg": "undecodable",
        "empty-caption.jpg": "empty_caption",
        "flat.png": "undecodable",
        "latin.jpg": "unreadable_text",
        "moving.gif": None,
        "lonely.txt": "missing_image",
        "no-caption.jpg": "missing_caption",
        "page.jpg": "undecodable",
        "small.jpg": "too_small",
        "sub/c d.jpeg": None,
        "wrong-name.jpg": None,
        "zero.jpg": "undecodable",
    }
    records = build("folder", data_dir=str(photos))
    assert {row["source"]: row["caption"] for row in records} == {
        "a.jpg": "A red car",
        "b.PNG": "ein Hund, größer",
        "moving.gif": "animated",
        "sub/c d.jpeg": "third",
        "wrong-name.jpg": "a PNG named jpg",
    }
    assert [row["image"]["bytes"] for row in records] == [files[row["source"]] for row in records]
    assert build("folder", data_dir=str(photos), streaming=True) == records
    assert build("folder", data_dir=str(photos), num_proc=2, cache_dir=str(tmp_path / "two")) == records


def write_table(path: Any, rows: Any) -> None:
    if path.suffix == ".csv":
        lines = [",".join(rows[0])] + [",".join(f'"{value}"' for value in row.values()) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8-sig")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_tables(build: Any, photos: Any, suffix: Any) -> None:
    (photos / "images").mkdir()
    for number in range(3):
        (photos / "images" / f"{number}.jpg").write_bytes(jpeg(number))
    rows = [
        {"file_name": "images/0.jpg", "text": "first, with a comma"},
        {"file_name": "images/0.jpg", "text": "second of the same"},
        {"file_name": "images/2.jpg", "text": "猫"},
        {"file_name": "images/9.jpg", "text": "gone"},
    ]
    write_table(photos / f"metadata.{suffix}", rows)
    found = build("folder", data_dir=str(photos), keep_rejected=True)
    assert reasons(found) == {
        "images/0.jpg": None,
        "images/1.jpg": "missing_caption",
        "images/2.jpg": None,
        "images/9.jpg": "missing_image",
    }
    assert (
        found[0]["captions"] == ["first, with a comma", "second of the same"] and found[2]["caption"] == "猫"
    )


def test_caption_column_is_chosen_by_name_and_a_wrong_one_lists_the_columns(build: Any, photos: Any) -> None:
    (photos / "0.jpg").write_bytes(jpeg())
    write_table(photos / "metadata.jsonl", [{"file_name": "0.jpg", "title": ["one", "two"], "text": "no"}])
    assert build("folder", data_dir=str(photos), caption_column="title")[0]["captions"] == ["one", "two"]
    with pytest.raises(
        ConfigError, match=r"metadata.jsonl: needs the columns file_name and alt; has file_name, title, text"
    ):
        build("folder", data_dir=str(photos), caption_column="alt", streaming=True)


def test_sub_folders_are_splits(build: Any, photos: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name, number in (("train", 0), ("val", 1), ("test", 2)):
        (photos / name).mkdir()
        (photos / name / "x.jpg").write_bytes(jpeg(number))
        (photos / name / "x.txt").write_text(name)
    (photos / "outside.jpg").write_bytes(jpeg(3))
    assert datasets.get_dataset_split_names("builders/folder", data_dir=str(photos)) == [
        "train",
        "validation",
        "test",
    ]
    assert "1 files outside of the folders" in caplog.text
    records = [
        build("folder", data_dir=str(photos), split=split)[0] for split in ("train", "validation", "test")
    ]
    assert [record["caption"] for record in records] == ["train", "val", "test"]
    assert len({record["key"] for record in records}) == 3


def test_two_images_of_one_stem_are_two_records(build: Any, photos: Any) -> None:
    (photos / "x.jpg").write_bytes(jpeg(0))
    (photos / "x.png").write_bytes(png(1))
    (photos / "x.txt").write_text("both")
    assert len({record["key"] for record in build("folder", data_dir=str(photos))}) == 2


def test_an_empty_folder_is_an_error_that_names_it_and_what_was_looked_for(build: Any, photos: Any) -> None:
    (photos / "readme.md").write_text("x")
    with pytest.raises(
        MissingSourceError, match=r"no images in data_dir='.*photos'.*\.jpg.*\.txt.*metadata\.csv"
    ):
        build("folder", data_dir=str(photos))


@pytest.mark.parametrize("data_dir", [None, "/no/such/folder"])
def test_no_folder_is_an_error(build: Any, data_dir: Any) -> None:
    with pytest.raises(MissingSourceError, match="data_dir="):
        build("folder", data_dir=data_dir, streaming=True)


def test_changed_files_and_other_folders_are_read_anew(
    build: Any, photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "x.jpg").write_bytes(jpeg(0))
    (photos / "x.txt").write_text("before")
    assert build("folder", data_dir=str(photos))[0]["caption"] == "before"
    (photos / "x.txt").write_text("after!")
    os.utime(photos / "x.txt", ns=(1, 1))
    assert build("folder", data_dir=str(photos))[0]["caption"] == "after!"
    other = tmp_path / "elsewhere" / "photos"
    other.mkdir(parents=True)
    (other / "x.jpg").write_bytes(jpeg(1))
    (other / "x.txt").write_text("other")
    for folder, caption in ((photos.parent, "after!"), (other.parent, "other")):
        monkeypatch.chdir(folder)
        assert build("folder", data_dir="photos")[0]["caption"] == caption


def test_many_files_are_many_shards(photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.folder.FILES_PER_SHARD", 3)
    for number in range(20):
        (photos / f"{number}.txt").write_text("x")
    (photos / "0.jpg").write_bytes(jpeg())
    dataset = datasets.load_dataset("builders/folder", data_dir=str(photos), split="train", streaming=True)
    assert dataset.num_shards == 7


# --- pixels ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def modes(photos: Any) -> Any:
    """One picture in each mode that is not RGB, and its top left pixel as it must come out."""
    grey = photo(0).convert("L")
    alpha = photo(1).convert("RGBA")
    alpha.putalpha(0)
    files = {
        "alpha": (encode(alpha, "PNG"), (255, 255, 255)),
        "bits16": (encode(Image.new("I;16", (300, 300), 100 * 257), "PNG"), (100, 100, 100)),
        "cmyk": (encode(Image.new("CMYK", (300, 300), (0, 0, 0, 128))), (127, 127, 127)),
        "grey": (encode(grey, "PNG"), (grey.getpixel((0, 0)),) * 3),
        "palette": (encode(Image.new("RGB", (300, 300), (9, 8, 7)).quantize(), "PNG"), (9, 8, 7)),
    }
    for name, (data, _) in files.items():
        (photos / f"{name}.{'jpg' if name == 'cmyk' else 'png'}").write_bytes(data)
        (photos / f"{name}.txt").write_text(name)
    return {name: pixel for name, (_, pixel) in files.items()}


def pixels(rows: Any) -> Any:
    images = {row["key"]: row["image"] for row in rows}
    assert {image.mode for image in images.values()} == {"RGB"}
    return {name: image.getpixel((0, 0)) for name, image in images.items()}


def test_every_mode_comes_out_as_rgb(photos: Any, modes: Any, tmp_path: Path) -> None:
    options = {"data_dir": str(photos), "split": "train", "cache_dir": str(tmp_path / "cache")}
    for streaming in (True, False, False, True):  # the later two find a cache
        assert pixels(datasets.load_dataset("builders/folder", streaming=streaming, **options)) == modes
    dataset = datasets.load_dataset("builders/folder", **options)
    assert pixels(dataset.select([3, 1, 0, 2, 4]).filter(lambda key: key, input_columns="key")) == modes
    assert pixels(dataset.map(lambda row: {"length": len(row["caption"])})) == modes
    assert next(iter(dataset.cast_column("image", datasets.Image())))["image"].mode == "RGBA"


def test_a_saved_dataset_needs_nothing_of_ours(photos: Any, modes: Any, tmp_path: Path) -> None:
    options = {"data_dir": str(photos), "split": "train", "cache_dir": str(tmp_path / "cache")}
    dataset = datasets.load_dataset("builders/folder", **options)
    dataset.save_to_disk(str(tmp_path / "saved"))
    saved = datasets.load_from_disk(str(tmp_path / "saved"))
    assert type(saved.features["image"]) is datasets.Image and {row["image"].mode for row in saved} == {"RGB"}
    both = datasets.concatenate_datasets([dataset, saved])
    assert [row["key"] for row in both] == list(modes) * 2
    own = datasets.Features({**dataset.features, "image": datasets.Image()})
    chosen = datasets.load_dataset("builders/folder", features=own, **options)
    assert chosen[0]["image"].mode == "RGBA"


def test_images_that_cannot_be_read_are_counted(build: Any, photos: Any) -> None:
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    (photos / "folder.jpg").mkdir()
    (photos.parent / "secret.jpg").write_bytes(jpeg(1))
    table = [
        {"file_name": name, "caption": "a photograph"} for name in ("gone.jpg", "../secret.jpg", "good.jpg")
    ]
    (photos / "good.jpg").write_bytes(jpeg(0))
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, table)))
    found = reasons(build("folder", data_dir=str(photos), keep_rejected=True))
    assert found == {"gone.jpg": "missing_image", "../secret.jpg": "missing_image", "good.jpg": None}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b'{"file_name": "a.jpg", "caption": "x"}\n{broken'),
        ("metadata.jsonl", b'["a.jpg", "x"]'),
        ("metadata.csv", b"file_name,caption\na.jpg,caf\xe9"),
        ("metadata.csv", b"file_name,caption\na.jpg," + b"x" * 2**25),
        ("metadata.parquet", b"PAR1 and no more"),
    ],
)
def test_a_broken_table_is_named(build: Any, photos: Any, name: Any, content: Any) -> None:
    (photos / "a.jpg").write_bytes(jpeg(0))
    (photos / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{name}.*cannot be read as"):
        build("folder", data_dir=str(photos))


@pytest.mark.parametrize("cleaning", ["none", "light"])
@pytest.mark.parametrize("table", [False, True])
def test_a_byte_order_mark_is_no_caption_whatever_the_cleaning(
    build: Any, photos: Any, cleaning: Any, table: Any
) -> None:
    (photos / "a.jpg").write_bytes(jpeg(1))
    text = "file_name,caption\na.jpg,A red car" if table else "A red car"
    (photos / ("metadata.csv" if table else "a.txt")).write_text("\ufeff" + text, encoding="utf-8")
    rows = build("folder", data_dir=str(photos), caption_cleaning=cleaning)
    assert [row["caption"] for row in rows] == ["A red car"]
