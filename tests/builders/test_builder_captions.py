"""Captions as they are written, or a counted reason: tables, encodings, what is no text, Midjourney's flags."""

import gc
import json
import random
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from builders.archives.midjourney import without_flags
from builders.core import shallow_json
from builders.core.captions import LONGEST, clean_captions
from builders.core.errors import ConfigError
from builders.core.tables import read_table
from builders.core.text_file import decode_text
from tests.support.raw import journeydb
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    root = tmp_path / "photos"
    root.mkdir()
    for name in ("a", "b", "c"):
        (root / f"{name}.jpg").write_bytes(jpeg(ord(name) % 5))
    return root


def captions(rows: Any) -> Any:
    return {row["source"]: row["reject"] or row["captions"] for row in rows}


# --- tables -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["file_name,caption", "file_name,title"])
def test_a_comma_in_an_unquoted_caption_is_an_error_with_file_and_line(
    build: Any, photos: Any, header: Any
) -> None:
    (photos / "metadata.csv").write_text(f'{header}\na.jpg,"a, b"\n\nb.jpg,a red, shiny car\n')
    column = {"caption_column": "title"} if "title" in header else {}
    with pytest.raises(ConfigError, match=r"metadata\.csv.*line 4 has 3 fields, the header 2.*double quotes"):
        build("folder", data_dir=str(photos), streaming=True, **column)
    with pytest.raises(pandas.errors.ParserError):
        pandas.read_csv(photos / "metadata.csv", index_col=False, on_bad_lines="error")


def test_random_tables_are_read_as_pandas_reads_them_or_refused(tmp_path: Path) -> None:
    """Stricter than pandas, which fills a row that is too short and takes a quote that is not closed by a comma."""
    rng, path, read = random.Random(7), tmp_path / "metadata.csv", 0
    for _ in range(400):
        lines = ["file_name,caption"]
        for _ in range(rng.randint(1, 4)):
            field = "".join(
                rng.choice(["a", " ", '"', '""', ",", "é", "'", "\\", ";", "\n"]) for _ in range(3)
            )
            lines.append("x.jpg," + rng.choice([field, '"' + field.replace('"', '""') + '"']))
        path.write_bytes(("\n".join(lines) + "\n").encode())
        try:
            ours = [row["caption"] for row in read_table(str(path))]
        except ConfigError as error:
            assert "metadata.csv" in str(error) and "line" in str(error)
            continue
        theirs = pandas.read_csv(
            path,
            index_col=False,
            keep_default_na=False,
            dtype=str,
            skip_blank_lines=True,
            lineterminator="\n",
            skipinitialspace=True,
        )
        assert ours == list(theirs["caption"]), lines
        read += 1
    assert read > 100


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_table_gives_what_imagefolder_gives(build: Any, photos: Any) -> None:
    texts = ["a red, shiny car", 'a "quoted" cat', "zwei\nZeilen – größer"]
    table = pandas.DataFrame({"file_name": ["a.jpg", "b.jpg", "c.jpg"], "caption": texts})
    table.to_csv(photos / "metadata.csv", index=False)
    stream = datasets.load_dataset("imagefolder", data_dir=str(photos), split="train", streaming=True)
    theirs = [row["caption"] for row in stream]
    ours = build("folder", data_dir=str(photos), streaming=True, caption_cleaning="none")
    assert [row["caption"] for row in ours] == theirs == texts
    del stream
    gc.collect()  # it leaves its table open; here, where that is no error


def test_two_tables_of_one_folder_are_an_error(build: Any, photos: Any) -> None:
    (photos / "metadata.csv").write_text("file_name,caption\na.jpg,one\n")
    (photos / "metadata.jsonl").write_text('{"file_name": "a.jpg", "caption": "one"}\n')
    with pytest.raises(ConfigError, match=r"metadata\.csv and .*metadata\.jsonl: two tables"):
        build("folder", data_dir=str(photos), streaming=True)


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX", ".cache/deep"])
def test_tables_of_hidden_folders_are_not_read(build: Any, photos: Any, hidden: Any) -> None:
    (photos / hidden).mkdir(parents=True)
    (photos / hidden / "metadata.csv").write_bytes(b"\0\5\x16\7\xff")
    (photos / "metadata.csv").write_text("file_name,caption\na.jpg,new\n")
    found = captions(build("folder", data_dir=str(photos), keep_rejected=True, streaming=True))
    assert found == {"a.jpg": ["new"], "b.jpg": "missing_caption", "c.jpg": "missing_caption"}


def test_what_is_no_text_is_no_caption(build: Any, photos: Any, tmp_path: Path) -> None:
    rows = ['{"file_name":"a.jpg","caption":NaN}', '{"file_name":"b.jpg","caption":["x",{"en":"a dog"},7]}']
    (photos / "metadata.jsonl").write_text("\n".join([*rows, '{"file_name":"c.jpg"}']))
    found = captions(build("folder", data_dir=str(photos), keep_rejected=True, streaming=True))
    assert found == {"a.jpg": "missing_caption", "b.jpg": ["x"], "c.jpg": "missing_caption"}
    (photos / "metadata.jsonl").unlink()
    table = pyarrow.table(
        {"file_name": ["a.jpg", "b.jpg"], "caption": pyarrow.array([b"caf\xc3\xa9", None], pyarrow.binary())}
    )
    pyarrow.parquet.write_table(table, photos / "metadata.parquet")
    found = captions(build("folder", data_dir=str(photos), keep_rejected=True, streaming=True))
    assert set(found.values()) == {"missing_caption"}

    facts = {
        "a": b'{"caption": NaN}',
        "b": b'{"caption": {"en": "x"}}',
        "c": b'{"caption": ["x", null, 3]}',
        "d": b'{"caption": "smile \\ud83d"}',
    }
    members = [
        (f"{k}.{kind}", data)
        for k, json_ in facts.items()
        for kind, data in (("jpg", jpeg(1)), ("json", json_))
    ]
    write_tar(tmp_path / "tars/0.tar", members)
    for streaming in (True, False):
        rows = build("webdataset", data_dir=str(tmp_path / "tars"), keep_rejected=True, streaming=streaming)
        assert [row["reject"] or row["captions"] for row in rows] == [
            "missing_caption",
            "missing_caption",
            ["x"],
            ["smile ?"],
        ]


# --- length ---------------------------------------------------------------------------------------------------------------------------


def test_a_caption_that_is_a_page_is_not_cleaned() -> None:
    page = "<a " * LONGEST
    assert clean_captions([page], "deepfloyd") == ({}, "caption_too_long")
    assert clean_captions([page, "a cat"], "deepfloyd") == ({1: "a cat"}, None)
    assert clean_captions([page, "..."], "none") == ({}, "caption_too_long")
    assert clean_captions(["x" * LONGEST], "light")[1] is None


# --- encodings ------------------------------------------------------------------------------------------------------------------------

TEXT = "A red car, größer als 红色的汽车"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("cleaning", ["none", "light"])
def test_a_byte_order_mark_says_the_encoding(build: Any, photos: Any, encoding: Any, cleaning: Any) -> None:
    (photos / "a.txt").write_bytes(TEXT.encode(encoding))
    rows = build("folder", data_dir=str(photos), caption_cleaning=cleaning, streaming=True)
    assert [row["caption"] for row in rows] == [TEXT]
    (photos / "a.txt").unlink()
    (photos / "metadata.csv").write_bytes(f'file_name,caption\na.jpg,"{TEXT}"\n'.encode(encoding))
    rows = build("folder", data_dir=str(photos), caption_cleaning=cleaning, streaming=True)
    assert [row["caption"] for row in rows] == [TEXT]


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gbk", "红色的汽车"), ("cp1252", "café"), ("utf-16-le", "a red car"), ("shift_jis", "猫")],
)
def test_another_encoding_is_counted_or_named(
    build: Any, photos: Any, tmp_path: Path, encoding: Any, text: Any
) -> None:
    data = text.encode(encoding)
    (photos / "a.txt").write_bytes(data)
    (photos / "b.txt").write_bytes(b"plain")
    write_tar(
        tmp_path / "tars/0.tar",
        [("a.jpg", jpeg(1)), ("a.txt", data), ("b.jpg", jpeg(2)), ("b.txt", b"plain")],
    )
    for name, root in (("folder", photos), ("webdataset", tmp_path / "tars")):
        rows = build(name, data_dir=str(root), keep_rejected=True, streaming=True)
        assert [row["reject"] for row in rows[:2]] == ["unreadable_text", None], name
        named = build(name, data_dir=str(root), caption_encoding=encoding, streaming=True)
        assert [row["caption"] for row in named[:1]] == [text], name
    (photos / "a.txt").unlink()
    (photos / "metadata.csv").write_bytes("file_name,caption\na.jpg,".encode(encoding) + data)
    if encoding != "utf-16-le":  # which is UTF-8 with NUL characters in it
        with pytest.raises(ConfigError, match=r"metadata\.csv.*cannot be read as utf-8.*caption_encoding="):
            build("folder", data_dir=str(photos), streaming=True)
    named = build("folder", data_dir=str(photos), caption_encoding=encoding, streaming=True)
    assert named[0]["caption"] == text
    with pytest.raises(ConfigError, match=r"caption_encoding='klingon'.*gbk"):
        build("folder", data_dir=str(photos), caption_encoding="klingon", streaming=True)


def test_no_text_is_mended_with_replacement_characters() -> None:
    rng = random.Random(3)
    for _ in range(2_000):
        data = bytes(rng.choice(b"ab\xff\xfe\xef\xbb\xbf\x00\xc3\xa9") for _ in range(rng.randint(0, 6)))
        try:
            text = decode_text(data)
        except ValueError:
            continue
        assert "\ufffd" not in text and "\0" not in text


# --- JSON -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [101, 900, 5_000, 10**6])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_without_end_is_an_error(depth: Any, opening: Any) -> None:
    closing = "]" if opening == "[" else "1}"
    with pytest.raises(ValueError):
        shallow_json.load(opening * depth + closing * depth)
    with pytest.raises(ValueError):
        shallow_json.load((opening * depth).encode())


def test_json_that_is_shallow_is_read() -> None:
    values: list[Any] = [[[[]]] * 500, "[" * 500, {"a": [{"b": "{" * 200}] * 300}]
    for value in values:
        assert shallow_json.load(json.dumps(value)) == value


def test_nested_json_costs_a_row_or_names_its_file(build: Any, photos: Any, tmp_path: Path) -> None:
    deep = b"[" * 900 + b"]" * 900
    (photos / "metadata.jsonl").write_bytes(b'{"file_name": "a.jpg", "caption": ' + deep + b"}")
    with pytest.raises(ConfigError, match=r"metadata\.jsonl.*nested deeper"):
        build("folder", data_dir=str(photos), streaming=True)
    members = [
        ("a.jpg", jpeg(1)),
        ("a.json", b'{"caption": "a", "x": ' + deep + b"}"),
        ("b.jpg", jpeg(2)),
        ("b.txt", b"b"),
    ]
    write_tar(tmp_path / "tars/0.tar", members)
    rows = build("webdataset", data_dir=str(tmp_path / "tars"), keep_rejected=True)
    assert [row["reject"] for row in rows] == ["missing_caption", None]


# --- Midjourney -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a cup --ar 2:3 --v 4", "a cup"),
        ("a cup --v5.1 --q .5 --style raw --tile", "a cup"),
        ("a cat --no people, dogs --ar 3:2", "a cat"),
        ("a cup —ar 16:9 --S 750 --niji", "a cup"),
        ("a cup --sref https://x.com/a.png https://x.com/b.png --sw 50", "a cup"),
        ("Spider -man", "Spider -man"),
        ("a man -walking 2", "a man -walking 2"),
        ("a -- b --c", "a -- b --c"),
        ("a well --lit room --known 3", "a well --lit room --known 3"),
        ("--ar 2:3 a cat", "--ar 2:3 a cat"),
        ("--v 4", ""),
    ],
)
def test_midjourneys_own_flags_go_and_words_stay(prompt: Any, text: Any) -> None:
    assert without_flags(prompt) == text


def test_flags_are_cut_from_prompts_only_and_not_with_none(build: Any, tmp_path: Path) -> None:
    root = tmp_path / "raw"
    journeydb.make(root)
    path = root / "data/train/train_anno_realease_repath.jsonl.tgz"
    journeydb.write_annotations(path, [journeydb.record("./000/c.png", "a cup --v 4", "a sentence --v 4")])
    found = {}
    for options in ({}, {"caption_cleaning": "none"}, {"caption_field": "caption"}):
        (row,) = build("journeydb", data_dir=str(root), parts="0", streaming=True, **options)
        assert row["prompt"] == "a cup --v 4"
        found[str(options)] = row["caption"]
    assert list(found.values()) == ["a cup", "a cup --v 4", "a sentence --v 4"]
