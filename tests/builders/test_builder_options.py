"""What single datasets offer beyond the suite: options, extra columns, and the faults of a whole archive."""

import logging
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from builders.core.config import parse_parts
from builders.core.errors import AnnotationError, ConfigError, MissingSourceError, NoRecordsError
from tests.support.raw import cc12m, coco, diffusiondb, journeydb, sa1b, textcaps, webdataset
from tests.support.raw.archive import dumps, write_tar, write_tgz, write_zip
from tests.support.raw.photos import jpeg, png
from tests.support.raw.server import serve


@pytest.fixture
def raw(tmp_path: Path) -> Any:
    def make(module: Any) -> Any:
        root = tmp_path / "raw"
        root.mkdir()
        module.make(root)
        return root

    return make


# --- parts ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "numbers"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ("0-2", [0, 1, 2]),
        ("5,1, 3", [1, 3, 5]),
        ("2,0-1,2", [0, 1, 2]),
        ("4", [4]),
        (4, [4]),
    ],
)
def test_parts(parts: Any, numbers: Any) -> None:
    assert parse_parts(parts, range(6)) == numbers


@pytest.mark.parametrize("parts", ["", "a", "1-", "3-1", "-1", "1;2", "0-6", "9"])
def test_bad_parts_are_named(parts: Any) -> None:
    with pytest.raises(ConfigError, match="parts="):
        parse_parts(parts, range(6))


def test_parts_choose_archives(build: Any, raw: Any) -> None:
    root = raw(cc12m)
    assert {row["key"][:4] for row in build("cc12m", data_dir=str(root), parts="1")} == {"0001"}
    with pytest.raises(MissingSourceError, match=r"parts='0-2', but not in .*: cc12m-train-0002.tar"):
        build("cc12m", data_dir=str(root), parts="0-2", streaming=True)


def test_missing_archives_are_told(build: Any, raw: Any, caplog: pytest.LogCaptureFixture) -> None:
    root = raw(coco)
    (root / "train2014.zip").unlink()
    with caplog.at_level(logging.WARNING, "builders"):
        assert build("coco", data_dir=str(root), split="validation", streaming=True)
        assert datasets.get_dataset_split_names("builders/coco", data_dir=str(root)) == ["validation"]
        cc12m.make(root)
        build("cc12m", data_dir=str(root), streaming=True)
    assert "coco: split train is left out, not in data_dir: train2014.zip" in caplog.text
    assert "cc12m: split train has 2 of 2,176 archives in data_dir" in caplog.text


# --- archives that are damaged as a whole --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [coco, cc12m, diffusiondb, journeydb, sa1b, textcaps])
def test_a_truncated_archive_costs_its_rest_and_is_counted(
    build: Any, raw: Any, module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = raw(module)
    name = module.__name__.rpartition(".")[2]
    archives = {
        "coco": "train2014.zip",
        "cc12m": "cc12m-train-0000.tar",
        "diffusiondb": "diffusiondb-large-part-1/part-000001.zip",
        "journeydb": "data/train/imgs/000.tgz",
        "sa1b": "sa_000020.tar",
        "textcaps": "train_val_images.zip",
    }
    path = root / archives[name]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rows = build(name, data_dir=str(root), streaming=True, keep_rejected=True)
    broken = [row for row in rows if row["reject"] == "bad_archive"]
    assert [row["source"] for row in broken] == [archives[name]]
    assert f"{archives[name]} breaks off" in caplog.text and "Fetch it again" in caplog.text
    if name in ("coco", "textcaps"):
        with pytest.raises(NoRecordsError, match="bad_archive 1"):
            build(name, data_dir=str(root), streaming=True)
    elif name != "diffusiondb":
        assert build(name, data_dir=str(root), streaming=True), (
            "the rows before it and the other archives are kept"
        )


def test_an_html_page_named_tar_is_a_bad_archive(build: Any, raw: Any) -> None:
    root = raw(cc12m)
    (root / "cc12m-train-0000.tar").write_bytes(b"<html>" + b"x" * 5000)
    rows = build("cc12m", data_dir=str(root), streaming=True, keep_rejected=True)
    assert rows[0]["reject"] == "bad_archive" and rows[1]["key"].startswith("0001")


# --- caches ---------------------------------------------------------------------------------------------------------------------------


def test_a_changed_archive_or_table_is_read_anew(build: Any, raw: Any) -> None:
    root = raw(sa1b)
    options = {"data_dir": str(root)}
    assert build("sa1b", **options)[0]["caption"] == "The image features an astronaut."
    write_tgz(root / "SA1B_caption.tar.gz", [("sa_1010.txt", b"New caption.")])
    assert [row["caption"] for row in build("sa1b", **options)] == ["New caption."]
    write_tar(root / "sa_000138.tar", [("./sa_1010.jpg", jpeg(9))])
    assert len(build("sa1b", **options)) == 2


def test_a_relative_path_means_the_folder_that_it_names_now(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "there"):
        write_tar(tmp_path / place / "tars/a.tar", [("a.jpg", jpeg(1)), ("a.txt", place.encode())])
    for place in ("here", "there", "here"):
        monkeypatch.chdir(tmp_path / place)
        assert [row["caption"] for row in build("webdataset", data_dir="tars")] == [place]


def test_a_changed_archive_behind_a_link_is_read_anew(build: Any, raw: Any, tmp_path: Path) -> None:
    root, linked = raw(diffusiondb), tmp_path / "linked"
    linked.mkdir()
    (linked / "images").symlink_to(root / "images")
    (linked / "metadata.parquet").symlink_to(root / "metadata.parquet")
    (linked / "nowhere").symlink_to(root / "gone")
    (linked / "back").symlink_to(linked)
    assert [row["key"] for row in build("diffusiondb", "2m", data_dir=str(linked))] == ["a"]
    prompts = {"gone.png": {"p": "there it is"}}
    write_zip(root / "images/part-000001.zip", [("gone.png", png(3)), ("x.json", dumps(prompts))])
    assert [row["key"] for row in build("diffusiondb", "2m", data_dir=str(linked))] == ["gone"]
    webdataset.make(root)
    (linked / "a.tar").symlink_to(root / "00000.tar")
    before = build("webdataset", data_dir=str(linked))
    write_tar(root / "00000.tar", [("new.jpg", jpeg(1)), ("new.txt", b"new")])
    assert len(before) > 1 and [row["caption"] for row in build("webdataset", data_dir=str(linked))] == [
        "new"
    ]


def test_a_changed_annotation_file_is_read_anew_while_streaming(build: Any, raw: Any) -> None:
    root = raw(textcaps)
    before = build("textcaps", data_dir=str(root), streaming=True)
    rows = [{"image_id": "00ab", "caption_id": 1, "caption_str": "changed", "reference_strs": ["changed"]}]
    (root / "TextCaps_0.1_train.json").write_bytes(dumps({"data": rows}))
    after = build("textcaps", data_dir=str(root), streaming=True)
    assert before != after and [row["caption"] for row in after] == ["changed"]


# --- coco ------------------------------------------------------------------------------------------------------------------------------


def test_coco_groups_captions_by_image_in_the_order_of_their_ids(build: Any, raw: Any) -> None:
    rows = {row["image_id"]: row for row in build("coco", data_dir=str(raw(coco)), streaming=True)}
    assert rows[1]["captions"] == [
        "A man with a red helmet on a small moped on a dirt road.",
        "second of one",
    ]
    assert rows[3]["captions"] == ["first of three", *(f"caption {extra} of three" for extra in range(5))]
    assert (rows[3]["width"], rows[3]["height"]) == (288, 320)  # EXIF says sideways


def test_a_big_zip_is_several_shards(build: Any, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builders.archives.sources.ROWS_PER_SHARD", 2)
    root = raw(coco)
    dataset = datasets.load_dataset("builders/coco", data_dir=str(root), split="train", streaming=True)
    assert dataset.num_shards == 3  # five images and a folder
    keys = [[row["key"] for row in dataset.shard(3, index).select_columns(["key"])] for index in range(3)]
    assert [key for part in keys for key in part] == [row["key"] for row in dataset.select_columns(["key"])]


def test_small_reads_the_first_slice(build: Any, raw: Any) -> None:
    root = raw(coco)
    names = [(f"train2014/COCO_train2014_{number:012d}.jpg", jpeg(number % 5)) for number in range(200)]
    write_zip(root / "train2014.zip", names)
    rows = build("coco", "small", data_dir=str(root), streaming=True, keep_rejected=True)
    assert [row["key"] for row in rows] == ["COCO_train2014_000000000000", "COCO_train2014_000000000001"]


# --- diffusiondb -----------------------------------------------------------------------------------------------------------------------


def test_safety_threshold(build: Any, raw: Any) -> None:
    root = str(raw(diffusiondb))
    strict = build(
        "diffusiondb", "2m", data_dir=root, streaming=True, keep_rejected=True, safety_threshold=0.01
    )
    assert all(row["reject"] in ("unsafe", "missing_image") for row in strict)
    open_ = {
        row["key"]: row["reject"]
        for row in build(
            "diffusiondb", "2m", data_dir=root, streaming=True, keep_rejected=True, safety_threshold=1.0
        )
    }
    assert open_["rude"] is None and open_["lewd"] is None
    assert {open_[key] for key in ("blurred", "nan", "null", "unknown")} == {"unsafe"}


def test_diffusiondb_extras(build: Any, raw: Any) -> None:
    (row,) = build("diffusiondb", "2m", data_dir=str(raw(diffusiondb)), streaming=True)
    assert (row["seed"], row["step"], row["cfg"], row["sampler"]) == (38753269, 50, 12.0, "k_lms")
    assert row["image_nsfw"] == pytest.approx(0.1) and row["prompt_nsfw"] == pytest.approx(0.05)


# --- journeydb -------------------------------------------------------------------------------------------------------------------------


def test_journeydb_caption_field(build: Any, raw: Any) -> None:
    root = str(raw(journeydb))
    rows = build("journeydb", data_dir=root, streaming=True, keep_rejected=True, caption_field="caption")
    outcomes = {row["key"]: row["reject"] or row["caption"] for row in rows}
    assert outcomes["train-000-a"] == "A sentence." and outcomes["train-001-a"] == "missing_caption"
    by_key = {row["key"]: row for row in rows}
    assert by_key["train-000-B"]["captions"] == ["A sentence.", "upper case"]
    assert by_key["train-000-B"]["caption_kinds"] == ["gpt", "prompt"]
    with pytest.raises(ConfigError, match="caption_field='text'"):
        build("journeydb", data_dir=root, caption_field="text", streaming=True)


def test_journeydb_annotations_that_name_no_archive_are_counted_once(build: Any, raw: Any) -> None:
    root = str(raw(journeydb))
    for parts, number in ((None, 1), ("0", 1), ("1", 0)):
        rows = build("journeydb", data_dir=root, streaming=True, keep_rejected=True, parts=parts)
        assert [row["reject"] for row in rows if "Upscaled" in row["key"]] == ["missing_image"] * number


# --- sa1b ------------------------------------------------------------------------------------------------------------------------------


def test_sa1b_without_links_takes_the_tars_that_are_there(build: Any, raw: Any) -> None:
    root = raw(sa1b)
    assert [row["key"] for row in build("sa1b", data_dir=str(root), streaming=True)] == [
        "sa_1010",
        "sa_1011",
        "sa_1543967",
    ]
    assert [row["key"] for row in build("sa1b", data_dir=str(root), parts="138", streaming=True)] == [
        "sa_1543967"
    ]


def test_sa1b_says_where_its_links_come_from(build: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match=r"ai\.meta\.com.*links=PATH"):
        build("sa1b", streaming=True)
    with pytest.raises(MissingSourceError, match="no such file"):
        build("sa1b", links=str(tmp_path / "no.txt"), streaming=True)
    (tmp_path / "links.txt").write_text("<html>")
    with pytest.raises(MissingSourceError, match=r"no line of the form sa_000020\.tar"):
        build("sa1b", links=str(tmp_path / "links.txt"), streaming=True)


# --- webdataset ------------------------------------------------------------------------------------------------------------------------


def test_webdataset_fields_are_chosen_by_name(build: Any, raw: Any) -> None:
    root = str(raw(webdataset))
    rows = build("webdataset", data_dir=root, streaming=True, caption_field="json.prompt", image_field="png")
    assert [row["captions"] for row in rows] == [["one", "two"]]


def test_webdataset_by_data_files_local_and_remote(
    build: Any, raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    root = raw(webdataset)
    expected = build("webdataset", data_dir=str(root), streaming=True)
    tars = ["00000.tar", "00001.tar"]
    assert build("webdataset", data_files=[str(root / tar) for tar in tars], streaming=True) == expected
    with serve(root) as server:
        urls = [f"{server.url}/{tar}" for tar in tars]
        assert build("webdataset", data_files=urls, streaming=True) == expected
        assert build("webdataset", data_files=urls) == expected


def test_webdataset_without_tars_is_an_error(build: Any, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "raw", ignore_errors=True)
    (tmp_path / "raw").mkdir()
    with pytest.raises(MissingSourceError, match=r"holds no archive. Looked for \*\.tar"):
        build("webdataset", data_dir=str(tmp_path / "raw"), streaming=True)
    with pytest.raises(MissingSourceError, match="data_dir=FOLDER or data_files=PATTERN"):
        build("webdataset", streaming=True)


# --- without anything on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "configs", "splits"),
    [
        ("coco", ["2014", "2017", "karpathy", "small"], ["train", "validation"]),
        ("cc12m", ["default", "small"], ["train"]),
        ("diffusiondb", ["large", "2m", "small"], ["train"]),
        ("textcaps", ["default", "small"], ["train", "validation"]),
        ("journeydb", ["default", "small"], ["train", "validation"]),
    ],
)
def test_names_are_known_without_a_network(
    name: Any, configs: Any, splits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfFileSystem.ls", offline)
    assert datasets.get_dataset_config_names(f"builders/{name}") == configs
    assert datasets.get_dataset_split_names(f"builders/{name}") == splits


def offline(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError("offline")


def test_published_archives_beyond_the_known_ones_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "datasets/JourneyDB/JourneyDB/data/train/imgs"
    monkeypatch.setattr(
        "huggingface_hub.HfFileSystem.ls", lambda *args, **kwargs: [f"{folder}/201.tgz", f"{folder}/note.txt"]
    )
    dataset = datasets.load_dataset("builders/journeydb", split="train", streaming=True)
    assert dataset.num_shards == 201


@pytest.mark.parametrize(
    ("name", "shards"), [("cc12m", 23), ("diffusiondb", 140), ("journeydb", 2), ("coco", 1), ("textcaps", 1)]
)
def test_small_is_about_one_percent(name: Any, shards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfFileSystem.ls", offline)
    assert (
        datasets.load_dataset(f"builders/{name}", "small", split="train", streaming=True).num_shards == shards
    )


# --- options that are wrong ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("cc12m", {"min_image_size": "256"}, "min_image_size='256' is of type str: give a whole number"),
        ("cc12m", {"min_image_size": 256.0}, "min_image_size=256.0 is of type float: give a whole number"),
        ("cc12m", {"min_image_size": True}, "min_image_size=True is of type bool: give a whole number"),
        ("cc12m", {"min_image_size": 0}, "min_image_size=0: give at least 1"),
        (
            "cc12m",
            {"max_image_size": "512"},
            "max_image_size='512' is of type str: give a whole number or None",
        ),
        ("cc12m", {"max_image_size": 200}, "max_image_size=200: give at least min_image_size, 256"),
        ("cc12m", {"lossless": "yes"}, "lossless='yes' is of type str: give True or False"),
        ("cc12m", {"keep_rejected": 1}, "keep_rejected=1 is of type int: give True or False"),
        (
            "cc12m",
            {"caption_cleaning": "strong"},
            "caption_cleaning='strong': choose one of none, light, deepfloyd",
        ),
        ("cc12m", {"parts": [1, 2]}, r"parts=\[1, 2\] is of type list: give text or a whole number or None"),
        ("cc12m", {"parts": "0-99999999999"}, "there is no archive 2176; published are 0 to 2175"),
        ("coco", {"first_slice_of": 0}, "first_slice_of=0: give at least 1"),
        (
            "diffusiondb",
            {"safety_threshold": "0.2"},
            "safety_threshold='0.2' is of type str: give a number or None",
        ),
        ("diffusiondb", {"safety_threshold": 20}, "safety_threshold=20: give a number from 0 to 1"),
        ("journeydb", {"caption_field": "text"}, "caption_field='text': choose one of prompt, caption"),
        ("webdataset", {"image_field": 1}, "image_field=1 is of type int: give text or None"),
    ],
)
def test_a_wrong_option_is_told_with_the_cure(
    build: Any, tmp_path: Path, name: Any, option: Any, message: Any
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, data_dir=str(tmp_path), streaming=True, **option)


def test_options_that_stand_for_others_are_taken(build: Any, raw: Any, tmp_path: Path) -> None:
    root = raw(diffusiondb)
    assert build("diffusiondb", "2m", data_dir=str(root), streaming=True, safety_threshold=1, parts=1)
    sa1b.make(root)
    (root / "links.txt").write_text("file_name\tcdn_link\nsa_000138.tar\thttps://example.org/a\n")
    rows = build("sa1b", data_dir=str(root), streaming=True, links=root / "links.txt")
    assert [row["key"] for row in rows] == ["sa_1543967"]


# --- what is left out by design ---------------------------------------------------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture, call: Any) -> Any:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "builders"):
        call()
    return [message.partition("left out: ")[2] for message in caplog.messages if "left out: " in message]


@pytest.mark.parametrize(
    "how", [{}, {"num_proc": 2}, {"streaming": True}, {"streaming": True, "keep_rejected": True}]
)
def test_a_test_split_without_captions_is_counted_once(
    build: Any, raw: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path, how: Any
) -> None:
    root = str(raw(textcaps))
    assert told(caplog, lambda: build("textcaps", data_dir=root, **how)) == ["no_caption_split 1"]
    (tmp_path / "raw/TextCaps_0.1_test.json").unlink()
    assert told(caplog, lambda: build("textcaps", data_dir=root, **how)) == ["no_caption_split 3,289"]
    if "streaming" in how:
        assert told(caplog, lambda: build("textcaps", data_dir=root, split="validation", **how)) == []


@pytest.mark.parametrize(
    "how", [{}, {"num_proc": 2}, {"streaming": True}, {"streaming": True, "keep_rejected": True}]
)
@pytest.mark.parametrize(("options", "absent"), [({}, 1), ({"parts": "0"}, 2), ({"parts": "0-1"}, 1)])
def test_annotations_of_archives_that_are_not_there_are_counted_once(
    build: Any, raw: Any, caplog: pytest.LogCaptureFixture, how: Any, options: Any, absent: Any
) -> None:
    """One annotation names archive 77; another names none, and goes to archive 0."""
    root = raw(journeydb)
    write_tgz(root / "data/valid/imgs/001.tgz", [("001/b.jpg", jpeg(0))])
    lines = told(caplog, lambda: build("journeydb", data_dir=str(root), **options, **how))
    assert lines[0] == f"no_caption_split 1, archive_absent {absent}"


def test_each_of_several_readers_of_a_stream_tells_of_its_own(
    build: Any, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = str(raw(journeydb))
    dataset = datasets.load_dataset("builders/journeydb", data_dir=root, split="train", streaming=True)
    each = [told(caplog, lambda index=index: list(dataset.shard(2, index))) for index in range(2)]
    assert each == [["no_caption_split 1, archive_absent 1"], []]


def test_scores_of_parts_that_are_not_there_are_counted(
    build: Any, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = raw(diffusiondb)
    options = {"data_dir": str(root), "streaming": True}
    assert told(caplog, lambda: build("diffusiondb", **options)) == []
    assert told(caplog, lambda: build("diffusiondb", parts=1, **options)) == ["archive_absent 10"]
    (root / "diffusiondb-large-part-2/part-010001.zip").unlink()
    assert told(caplog, lambda: build("diffusiondb", **options)) == ["archive_absent 10"]


def test_karpathy_annotations_of_the_other_zip_are_counted(
    build: Any, raw: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = raw(coco)
    options = {"data_dir": str(root), "streaming": True, "split": "train"}
    assert told(caplog, lambda: build("coco", "karpathy", **options)) == []
    (root / "val2014.zip").unlink()
    assert told(caplog, lambda: build("coco", "karpathy", **options)) == ["archive_absent 1"]


# --- annotations that are damaged --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "html"])
@pytest.mark.parametrize(
    ("module", "config", "table"),
    [
        (coco, "2014", "annotations_trainval2014.zip"),
        (coco, "karpathy", "caption_datasets.zip"),
        (textcaps, None, "TextCaps_0.1_train.json"),
        (journeydb, None, "data/train/train_anno_realease_repath.jsonl.tgz"),
        (diffusiondb, "2m", "metadata.parquet"),
        (sa1b, None, "SA1B_caption.tar.gz"),
    ],
)
def test_damaged_annotations_are_an_error_that_names_them(
    build: Any, raw: Any, module: Any, config: Any, table: Any, damage: Any
) -> None:
    path = raw(module) / table
    data = path.read_bytes()
    path.write_bytes(
        data[: len(data) // 2] if damage == "truncated" else b"<html><body>Access denied</body></html>"
    )
    with pytest.raises(AnnotationError, match=rf"{table}: its annotations cannot be read.*Fetch it again"):
        build(
            module.__name__.rpartition(".")[2],
            config,
            data_dir=str(path.parents[table.count("/")]),
            streaming=True,
        )
    path.write_bytes(data)
    assert build(
        module.__name__.rpartition(".")[2],
        config,
        data_dir=str(path.parents[table.count("/")]),
        streaming=True,
    )
