"""Damaged tars, zips, pictures, tables and captions: no exception out of a build or a stream, no hang, every file accounted.

LATENTMILL_FUZZ=2000 tries so many mutations of each kind instead of a few dozen.
"""

import contextlib
import gzip
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps

import builders
from builders.archives.members import MAX_MEMBER_SIZE, all_members
from builders.archives.remote import open_file
from builders.archives.zips import count_zip, zip_names
from builders.core import images
from builders.core.errors import ArchiveError, ConfigError
from tests.builders.conftest import Build
from tests.support.judges import listed_by_find, members_by_others
from tests.support.mutations import mutated
from tests.support.raw import coco
from tests.support.raw.archive import write_tar, write_zip
from tests.support.raw.photos import encode, jpeg, photo, png, webp

MUTATIONS = int(os.environ.get("LATENTMILL_FUZZ", "60"))
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


def _members() -> list[tuple[str, bytes]]:
    members = [
        ("a.jpg", PICTURES["jpg"]),
        ("a.txt", b"a"),
        ("a.json", b'{"url": "http://x"}'),
        ("x/b b.png", b"png"),
    ]
    return [
        *members,
        ("x/b b.txt", b"b"),
        ("y" * 130 + ".jpg", b"long"),
        ("y" * 130 + ".txt", b"short"),
    ]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_damaged_tar_is_rows_and_at_most_one_bad_archive(kind: str, build: Build, tmp_path: Path) -> None:
    root = tmp_path / "tars"
    write_tar(root / "whole.tar", _members())
    whole = (root / "whole.tar").read_bytes()
    if kind == "tar.gz":
        (root / "whole.tar").unlink()
        whole = gzip.compress(whole, 1, mtime=0)
        (root / "whole.tar.gz").write_bytes(whole)
    for seed in range(MUTATIONS):
        (root / f"{seed:05d}.{kind}").write_bytes(mutated(whole, seed))
    rows = build("webdataset", data_dir=str(root), streaming=True, keep_rejected=True, min_image_size=1)
    by_archive: dict[str, list[tuple[str, str | None]]] = {f"{s:05d}.{kind}": [] for s in range(MUTATIONS)}
    for row in rows:
        archive, _, sample = row["source"].partition("/")
        by_archive.setdefault(archive, []).append((sample, row["reject"]))
    assert [reject for _, reject in by_archive.pop(f"whole.{kind}")] == [None, "undecodable", "undecodable"]
    for archive, found in by_archive.items():
        broken = [reject for _, reject in found].count("bad_archive")
        assert broken <= 1
        if not broken:
            samples = {sample for sample, _ in found}
            for member in members_by_others(root / archive):
                folder, slash, base = member.encode("utf-8", "replace").decode().rpartition("/")
                hidden = member.startswith(".") or "/." in member
                assert folder + slash + base.partition(".")[0] in samples or hidden, (archive, member)


def test_a_damaged_zip_gives_members_or_says_so(tmp_path: Path) -> None:
    """Each member that zipfile lists is there, with the content that zipfile reads; what it refuses is damaged here too.

    Damaged reads as nothing, which the gate calls undecodable. Of a member that claims more bytes than there are, or than any picture
    has, zipfile reads some.
    """
    path = tmp_path / "whole.zip"
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_zip(path, _members(), compression)
        whole = path.read_bytes()
        for seed in range(MUTATIONS):
            data = mutated(whole, seed)
            try:
                ours = {
                    member.name.partition("\0")[0]: member.read() for member in all_members(io.BytesIO(data))
                }
            except ArchiveError:
                continue
            for name, content, is_absurd in _read_by_zipfile(data):
                assert name in ours, (seed, name)
                expected = {content or b"", b""} if content is None or is_absurd else {content}
                assert ours[name] in expected, (seed, name)


def _read_by_zipfile(data: bytes) -> list[tuple[str, bytes | None, bool]]:
    """Name, content and whether a size is absurd, of each file; None for content that it refuses for its names or its checksum."""
    found = []
    with contextlib.suppress(Exception):  # it raises a dozen kinds on damage
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                name, content = info.filename.removeprefix("./"), None
                try:
                    content = archive.read(info)
                except zipfile.BadZipFile as error:
                    if not any(said in str(error) for said in ("Bad CRC", "and header")):
                        continue
                if not name.endswith("/"):
                    is_absurd = info.compress_size > len(data) or info.file_size > MAX_MEMBER_SIZE
                    found.append((name, content, is_absurd))
    return found


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_flipped_bit_in_a_zips_name_gives_no_picture_its_neighbours_caption(
    compression: int, build: Build, tmp_path: Path
) -> None:
    coco.make(tmp_path / "raw")
    path = tmp_path / "raw/val2014.zip"
    first, second = (f"val2014/COCO_val2014_{number:012d}.jpg" for number in (1, 3))
    write_zip(path, [(first, PICTURES["jpg"])], compression)
    data = path.read_bytes()
    for at in (data.find(first.encode()), data.rfind(first.encode())):
        path.write_bytes(data[:at] + second.encode() + data[at + len(second) :])
        options = {
            "data_dir": str(tmp_path / "raw"),
            "split": "validation",
            "keep_rejected": True,
            "min_image_size": 1,
        }
        rows = build("coco", streaming=True, cache_dir=str(tmp_path / "cache"), **options)
        assert not [row for row in rows if row["reject"] is None]
        assert [row["reject"] for row in rows if row["source"].startswith("val2014.zip/")] in (
            ["undecodable"],
            ["missing_caption"],
        )


@pytest.mark.parametrize("place", [2**32 - 2, 2**40, 2**62, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("what", ["member", "directory", "count"])
def test_a_zip_that_claims_an_absurd_place_is_damaged(
    what: str, place: int, build: Build, tmp_path: Path
) -> None:
    """A seek beyond what the file system can hold is an error of a file on a disk. It ends as a rejected row."""
    coco.make(tmp_path / "raw")
    path, name = tmp_path / "raw/val2014.zip", f"val2014/COCO_val2014_{1:012d}.jpg"
    write_zip(path, [(name, PICTURES["jpg"])])
    data = path.read_bytes()
    at = data.index(b"PK\1\2")
    entry = data[at : data.index(b"PK\5\6")]
    if what == "member":
        claim = struct.pack("<2HQ", 1, 8, place)
        entry = entry[:30] + struct.pack("<H", len(claim)) + entry[32:42] + b"\xff" * 4 + entry[46:] + claim
    count, length, start = 1, len(entry), at
    start = place if what == "directory" else start
    count = place if what == "count" else count
    end = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, at + len(entry), 1)
    path.write_bytes(
        data[:at]
        + entry
        + end
        + locator
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, 2**32 - 1, 2**32 - 1, 0)
    )
    with open_file(str(path)) as file:
        if what == "member":
            assert [(member.name, member.read()) for member in all_members(file)] == [(name, b"")]
        for read in () if what == "member" else (all_members, zip_names, lambda file: [count_zip(file)]):
            with pytest.raises(ArchiveError):
                list(read(file))
    rows = streamed_coco(build, tmp_path, min_image_size=1)
    rejects = [row["reject"] for row in rows if row["source"].startswith("val2014.zip")]
    assert None not in rejects and ("undecodable" if what == "member" else "bad_archive") in rejects


def streamed_coco(build: Build, tmp_path: Path, **more: Any) -> list[dict[str, Any]]:
    """All rows, the rejected ones too."""
    where = {"data_dir": str(tmp_path / "raw"), "cache_dir": str(tmp_path / "cache")}
    return build("coco", split="validation", streaming=True, keep_rejected=True, **where, **more)


def test_a_build_of_damaged_zips_ends(build: Build, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    coco.make(tmp_path / "raw")
    whole = (tmp_path / "raw/val2014.zip").read_bytes()
    for seed in range(MUTATIONS // 4):
        (tmp_path / "raw/val2014.zip").write_bytes(mutated(whole, seed))
        assert streamed_coco(build, tmp_path)


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
    whole = path.read_bytes()
    told = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(whole, seed))
        try:
            rows = build("folder", data_dir=str(root), streaming=True, keep_rejected=True, min_image_size=1)
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


def test_map_mode_takes_the_same_damage(build: Build, tmp_path: Path) -> None:
    """Values pass Arrow there, which holds no half characters."""
    root = tmp_path / "tars"
    write_tar(root / "whole.tar", _members())
    whole = (root / "whole.tar").read_bytes()
    for seed in range(MUTATIONS):
        (root / f"{seed:05d}.tar").write_bytes(mutated(whole, seed))
    options = {"data_dir": str(root), "keep_rejected": True, "min_image_size": 1}
    mapped, streamed = (build("webdataset", streaming=streaming, **options) for streaming in (False, True))
    assert [(row["key"], row["reject"], row["caption"]) for row in mapped] == [
        (row["key"], row["reject"], row["caption"]) for row in streamed
    ]
