"""Captions from elsewhere, `captions_from={"llava": FILE}`: joined by key, URL or source, the same whichever way a builder is read."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas
import pytest

import builders
from builders.core.errors import ConfigError
from tests.support.raw import cc12m, coco
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

DEMO = [
    ("astronaut", "a <b>woman</b> in orange"),
    ("brick", "!!"),
    ("coffee", "a cup"),
    ("nobody", "x"),
    ("text", "t"),
]
TOLD = "llava: 1 of 5 rows of the file match no row, 18 records have none"


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """The rows by the library that the suffix stands for: csv, json or pandas."""
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def brief(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    assert all(row["caption"] == row["captions"][0] for row in rows)
    return {row["key"]: list(zip(row["caption_kinds"], row["captions"], strict=True)) for row in rows}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_every_way_of_reading_gives_the_same_captions_and_counts(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: Any
) -> None:
    own = brief(build("demo", streaming=True))
    rows = [{"key": key, "caption": text, "model": "x"} for key, text in DEMO]
    files = {"llava": write(tmp_path / f"re.{suffix}", rows)}
    caplog.clear()
    stream = brief(build("demo", captions_from=files, streaming=True))
    assert TOLD in caplog.text
    caplog.clear()
    assert brief(build("demo", captions_from=files)) == stream and TOLD in caplog.text
    joined = {"astronaut": ("llava", "a woman in orange"), "coffee": ("llava", "a cup")}
    assert stream == {key: [*([joined[key]] if key in joined else []), *found] for key, found in own.items()}
    behind = brief(build("demo", captions_from=files, captions_order="behind", streaming=True))
    assert behind == {key: [*found, *([joined[key]] if key in joined else [])] for key, found in own.items()}


def test_a_file_is_joined_whole_by_several_processes_and_anew_when_it_changes(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "re.csv"
    files = {"llava": write(path, [{"key": key, "caption": text} for key, text in DEMO])}
    first = brief(build("demo", captions_from=files, num_proc=2))
    assert TOLD in caplog.text and first["coffee"][0] == ("llava", "a cup")
    write(path, [{"key": "coffee", "caption": "another cup"}])
    assert brief(build("demo", captions_from=files, num_proc=2))["coffee"][0] == ("llava", "another cup")


def test_two_files_stand_in_their_order(build: Any, tmp_path: Path) -> None:
    files = {
        name: write(
            tmp_path / f"{name}.jsonl",
            [{"source": "skimage/data/coffee.png", "captions": [name, f"{name} 2"]}],
        )
        for name in ("gpt", "llava")
    }
    found = brief(build("demo", captions_from=files, streaming=True))["coffee"]
    assert found[:4] == [("gpt", "gpt"), ("gpt", "gpt 2"), ("llava", "llava"), ("llava", "llava 2")]
    assert found[4][0] == "human"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_lacked_its_own_caption_is_a_record(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, streaming: Any
) -> None:
    (raw := tmp_path / "raw").mkdir()
    cc12m.make(raw)
    rows = [("000000006", "no caption of its own"), ("000000000", "The Car"), ("1", "of nobody")]
    files = {
        "llava": write(
            tmp_path / "re.parquet",
            [{"url": f"http://example.org/{key}", "caption": text} for key, text in rows],
        )
    }
    options = {"data_dir": str(raw), "captions_from": files, "streaming": streaming}
    found = brief(build("cc12m", **options))
    assert found["0000-000000006"] == [("llava", "no caption of its own")]
    # Cleaned as the others of the dataset, by deepfloyd.
    assert found["0000-000000000"] == [("llava", "the car"), ("alt", "person the red car")]
    assert "1 of 3 rows of the file match no row, 5 records have none" in caplog.text
    kept = build("cc12m", keep_rejected=True, **options)
    expected = dict(cc12m.EXPECTED["default"]["train"]) | {"0000-000000006": None}
    rejected = {row["key"]: row["reject"] for row in kept if row["reject"] not in (None, "duplicate_key")}
    expected.pop("0001-000010004")
    assert rejected == {key: text[1:] for key, text in expected.items() if text and text.startswith("!")}


def test_coco_and_ones_own_tars_by_source_and_by_the_url_of_img2dataset(build: Any, tmp_path: Path) -> None:
    (raw := tmp_path / "coco").mkdir()
    coco.make(raw)
    name = "COCO_train2014_000000000004"
    rows = [{"source": f"train2014.zip/train2014/{name}.jpg", "caption": "joined"}]
    files = {"llava": write(tmp_path / "re.csv", rows)}
    assert brief(build("coco", data_dir=str(raw), captions_from=files, streaming=True))[name] == [
        ("llava", "joined")
    ]
    facts = json.dumps({"url": "http://a/b", "caption": "own"}).encode()
    write_tar(tmp_path / "tars" / "0.tar", [("a.jpg", jpeg(0)), ("a.json", facts)])
    files = {"llava": write(tmp_path / "url.jsonl", [{"url": "http://a/b", "caption": "joined"}])}
    found = brief(build("webdataset", data_dir=str(tmp_path / "tars"), captions_from=files, streaming=True))
    assert list(found.values()) == [[("llava", "joined"), ("caption", "own")]]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": 1, "caption": "x"}], "exactly one of the columns key, url, source; has id, caption"),
        ([{"key": "a", "url": "b", "caption": "x"}], "exactly one of the columns key, url, source; has key, url, caption"),
        ([{"key": "a", "text": "x"}], "needs a column caption, or captions; has key, text"),
        ([{"url": "a", "caption": "x"}], "joined by url, which this dataset's rows have not; give key or source"),
        ([{"key": "a", "caption": "x"}] * 3, "3 rows of 'a'; keep one of them, with a list in `captions` for several"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_joined_is_refused_in_a_line(tmp_path: Path, rows: Any, says: Any) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        path = write(tmp_path / f"re.{suffix}", rows)
        for _ in range(2):
            with pytest.raises(ConfigError) as refused:
                load({"llava": path}, tmp_path)
            assert f"captions_from: llava={path}: " in str(refused.value) and says in str(refused.value)
            assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_and_a_name_that_is_none(tmp_path: Path) -> None:
    damaged = tmp_path / "re.parquet"
    damaged.write_bytes(b"PAR1 and nothing else")
    lacking = write(tmp_path / "null.jsonl", [{"key": "a", "caption": "x"}, {"key": None, "caption": "y"}])
    for files, says in [
        ({"llava": str(tmp_path / "nowhere.csv")}, "nowhere.csv: no such file"),
        ({"llava": str(damaged)}, "re.parquet: cannot be read as parquet"),
        ({"llava": lacking}, "null.jsonl: row 2 has no key"),
        ({"llava": "re.txt"}, "llava=re.txt: give a file that ends in .parquet, .csv, .jsonl"),
        ({"my model": lacking}, "'my model' is no name; give letters and digits"),
        ({"human": lacking}, "'human' is the kind of the dataset's own captions"),
        (lacking, "give files by name, as in captions_from="),
    ]:
        with pytest.raises(ConfigError) as refused:
            load(files, tmp_path)
        assert says in str(refused.value)


def load(files: Any, cache: Path) -> None:
    builders.load_dataset(
        "builders/demo", split="train", streaming=True, captions_from=files, cache_dir=str(cache)
    )
