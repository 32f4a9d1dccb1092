"""No file of a folder and no member of a tar vanishes, and none ends a build: each is a row, or named in the account."""

import errno
import io
import json
import os
import subprocess
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pytest

from builders.core.errors import NoRecordsError
from tests.support.raw.archive import write_tar, write_tgz
from tests.support.raw.photos import encode, jpeg, photo, png

WAYS = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture
def photos(tmp_path: Path) -> Any:
    root = tmp_path / "photos"
    root.mkdir()
    return root


def put(root: Any, files: Any) -> None:
    for name, data in files.items():
        path = os.path.join(os.fsencode(root), name if isinstance(name, bytes) else os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())


def outcomes(rows: Any) -> Any:
    return {row["source"]: row["reject"] or row["caption"] for row in rows}


@WAYS
def test_every_file_of_a_folder_is_a_row_or_named(
    build: Any, photos: Any, caplog: pytest.LogCaptureFixture, streaming: Any
) -> None:
    elsewhere = photos.parent / "elsewhere"
    put(elsewhere, {"x.jpg": jpeg(5), "x.txt": "behind a link"})
    put(
        photos,
        {
            "__miku__.jpg": jpeg(0), "__miku__.txt": "a name with underscores",
            "a.jfif": jpeg(1), "a.txt": "jfif",
            "b.avif": encode(photo(1), "AVIF"), "b.txt": "avif",
            "c.heic": b"\0\0\0\x18ftypheic" + bytes(99), "c.txt": "heic",
            "d.jpe": jpeg(2),
            "cat.jpg": jpeg(3), "cat.jpg.txt": "named after the file",
            "e.jpg": jpeg(4), "e.TXT": "this one", "e.caption": "not this one",
            unicodedata.normalize("NFD", "é.jpg"): jpeg(0), unicodedata.normalize("NFC", "é.txt"): "composed otherwise",
            b"caf\xe9.jpg": jpeg(1), b"caf\xe9.txt": "no UTF-8 name",
            "f.jpg": jpeg(2), ".DS_Store": b"x", ".git/g.jpg": jpeg(3), "Thumbs.db": b"x", "README.md": b"x",
        },
    )  # fmt: skip
    (photos / "f.txt").symlink_to("/nowhere/f.txt")
    (photos / "linked").symlink_to(elsewhere)
    (photos / "linked" / "back").symlink_to(photos)
    kept = build("folder", data_dir=str(photos), keep_rejected=True, streaming=streaming)
    found = outcomes(kept)
    assert found.pop(unicodedata.normalize("NFD", "é.jpg")) == "composed otherwise"
    assert found == {
        "__miku__.jpg": "a name with underscores", "a.jfif": "jfif", "b.avif": "avif", "c.heic": "unsupported_format",
        "d.jpe": "missing_caption", "cat.jpg": "named after the file", "e.jpg": "this one", "caf?.jpg": "no UTF-8 name",
        "f.jpg": "unreadable", "linked/x.jpg": "behind a link",
    }  # fmt: skip
    assert "hidden 2: .DS_Store, .git/g.jpg" in caplog.text
    assert "not_image_or_caption 2: README.md, Thumbs.db" in caplog.text
    assert "second_caption_file 1: e.caption" in caplog.text
    listed = subprocess.run(
        ["find", "-L", ".", "-type", "f"], cwd=photos, capture_output=True, check=False
    ).stdout
    pictures = {
        line
        for line in listed.split(b"\n")
        if line
        and b"/back" not in line
        and b"/.git" not in line
        and line.lower().endswith((b"jpg", b"jpe", b"jfif", b"avif", b"heic"))
    }
    assert len(pictures) == len(kept), "as find lists them"


def test_names_of_a_tar_are_one_however_their_accents_are_composed(build: Any, photos: Any) -> None:
    taken_apart, composed = (unicodedata.normalize(form, "é") for form in ("NFD", "NFC"))
    members = [(f"{taken_apart}.jpg", jpeg(0)), (f"{composed}.txt", b"a"), (f"{composed}e.jpg", jpeg(1))]
    write_tar(photos / "0.tar", members)
    rows = build("webdataset", data_dir=str(photos), keep_rejected=True, streaming=True)
    assert [(row["source"], row["reject"] or row["caption"]) for row in rows] == [
        (f"0.tar/{taken_apart}", "a"),
        (f"0.tar/{composed}e", "missing_caption"),
    ]


def test_an_archive_of_names_with_dots_says_what_to_do_once(
    build: Any, photos: Any, caplog: pytest.LogCaptureFixture
) -> None:
    members = [(f"a.v{number}.{kind}", data) for number in range(3) for kind, data in (("jpg", jpeg(0)), ("txt", b"a"))]  # fmt: skip
    write_tar(photos / "0.tar", [*members, ("b.jpg", jpeg(1)), ("b.raw.txt", b"b"), ("b.txt", b"b")])
    options = {"data_dir": str(photos), "streaming": True}
    assert [row["caption"] for row in build("webdataset", **options)] == ["b"]
    (told,) = (message for message in caplog.messages if "dots in names" in message)
    assert "a.v0.jpg is 'v0.jpg' of 'a'" in told and "image_field=..." in told
    rows = build("webdataset", image_field="v1.jpg", caption_field="v2.txt", **options)
    assert [row["caption"] for row in rows] == ["a"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_cannot_read_is_no_missing_image(
    build: Any, photos: Any, monkeypatch: pytest.MonkeyPatch, code: Any
) -> None:
    put(photos, {"a.jpg": jpeg(0), "a.txt": "a", "b.jpg": jpeg(1), "b.txt": "b"})
    real = open

    def failing(path: Any, *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith(("a.jpg", "b.txt")):
            raise OSError(code, os.strerror(code))
        return real(path, *args, **kwargs)

    monkeypatch.setattr("builders.folder.open", failing, raising=False)
    rows = build("folder", data_dir=str(photos), keep_rejected=True, streaming=True)
    assert outcomes(rows) == {"a.jpg": "unreadable", "b.jpg": "unreadable"}


def test_names_out_of_a_table_mean_files_whatever_their_separators_and_forms(build: Any, photos: Any) -> None:
    put(photos, {"img/a.jpg": jpeg(0), unicodedata.normalize("NFD", "ü.jpg"): jpeg(1)})
    table = [
        {"file_name": "img\\a.jpg", "caption": "windows"},
        {"file_name": unicodedata.normalize("NFC", "ü.jpg"), "caption": "form"},
    ]
    put(photos, {"metadata.jsonl": "\n".join(map(json.dumps, table))})
    assert [row["caption"] for row in build("folder", data_dir=str(photos))] == ["windows", "form"]


def test_a_split_without_records_costs_no_other(photos: Any, tmp_path: Path) -> None:
    put(photos, {"train/a.jpg": jpeg(0), "train/a.txt": "a", "val/gone.txt": "its image is elsewhere"})
    options = {"data_dir": str(photos), "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):  # the second time from the cache
        assert len(datasets.load_dataset("builders/folder", split="train", **options)) == 1
        with pytest.raises(NoRecordsError, match="validation"):
            datasets.load_dataset("builders/folder", split="validation", **options)
        every: Any = datasets.load_dataset("builders/folder", **options)
        assert {split: len(part) for split, part in every.items()} == {"train": 1}


@WAYS
def test_pipes_and_devices_are_no_files_and_nobody_waits_for_them(
    build: Any, photos: Any, streaming: Any
) -> None:
    put(photos, {"a.jpg": jpeg(0), "a.txt": "a", "pipe.txt": "of a pipe"})
    os.mkfifo(photos / "pipe.jpg")
    os.mkfifo(photos / "pipe.tar")
    for name, target in (("link.jpg", "pipe.jpg"), ("zero.txt", "/dev/zero"), ("round.jpg", "round.jpg")):
        (photos / name).symlink_to(target)
    rows = build("folder", data_dir=str(photos), keep_rejected=True, streaming=streaming)
    assert outcomes(rows) == {"a.jpg": "a", "pipe.txt": "missing_image", "round.jpg": "unreadable"}
    write_tar(photos / "0.tar", [("b.jpg", jpeg(1)), ("b.txt", b"b")])
    rows = build("webdataset", data_dir=str(photos), keep_rejected=True, streaming=streaming)
    assert outcomes(rows) == {"0.tar/b": "b"}


@WAYS
def test_every_archive_and_member_of_a_folder_of_tars_is_read_or_named(
    build: Any, photos: Any, caplog: pytest.LogCaptureFixture, streaming: Any
) -> None:
    two = [("a.jpg", jpeg(0)), ("a.txt", b"first"), ("__b.jpg", jpeg(1)), ("__b.txt", b"second")]
    write_tar(photos / "0.tar", two)
    write_tar(photos / "1.TAR", [("a.jpg", jpeg(2)), ("a.Caption.TXT", b"x"), ("a.txt", b"upper case")])
    write_tgz(photos / "2.tar.gz", two)
    write_tgz(photos / "3.tgz", two)
    (photos.parent / "more").mkdir()
    write_tar(photos.parent / "more" / "4.tar", two)
    (photos / "linked").symlink_to(photos.parent / "more")
    with tarfile.open(photos / "5.tar", "w") as tar:
        for name, data, kind in (("a.jpg", jpeg(3), b"0"), ("a.txt", b"hard", b"0"), ("b.jpg", "a.jpg", b"1"), ("b.txt", "a.txt", b"2"), ("c.jpg", "gone", b"2"), ("c.txt", b"nowhere", b"0")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(data, str):
                info.linkname, data = data, b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (photos / "6.tar").write_bytes(b"")
    (photos / "notes.md").write_bytes(b"")
    rows = build("webdataset", data_dir=str(photos), keep_rejected=True, streaming=streaming)
    found = outcomes(rows)
    assert (
        found["1.TAR/a"] == "upper case"
        and found["6.tar"] == "bad_archive"
        and found["5.tar/c"] == "unreadable"
    )
    assert found["5.tar/a"] == found["5.tar/b"] == "hard"
    for name in ("0.tar", "2.tar.gz", "3.tgz", "linked/4.tar"):
        assert (found[f"{name}/a"], found[f"{name}/__b"]) == ("first", "second")
    assert len({row["key"] for row in rows}) == len(rows) == 13
    assert "no_archive 1: notes.md" in caplog.text


@WAYS
def test_a_name_that_is_no_utf8_and_half_a_character_end_no_build(
    build: Any, photos: Any, streaming: Any
) -> None:
    with tarfile.open(photos / "0.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for name, data in (("caf\xe9.jpg", png(0)), ("caf\xe9.txt", b"c"), ("b.jpg", jpeg(1)), ("b.txt", b"b"), ("b.json", rb'{"alt": "\ud83d"}')):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert [row["caption"] for row in build("webdataset", data_dir=str(photos), streaming=streaming)] == [
        "c",
        "b",
    ]


def test_the_caption_field_is_found_whatever_its_case_and_an_unsorted_tar_says_what_to_do(
    build: Any, photos: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(photos / "0.tar", [("a.jpg", jpeg(0)), ("a.Caption.TXT", b"found")])
    assert build("webdataset", data_dir=str(photos), caption_field="Caption.TXT")[0]["caption"] == "found"
    write_tar(
        photos / "0.tar",
        [
            ("a.jpg", jpeg(0)),
            ("b.jpg", jpeg(1)),
            ("a.txt", b"a"),
            ("b.txt", b"b"),
            ("c.jpg", jpeg(2)),
            ("c.txt", b"c"),
        ],
    )
    build("webdataset", data_dir=str(photos), streaming=True)
    assert caplog.text.count("tar --sort=name") == 1
