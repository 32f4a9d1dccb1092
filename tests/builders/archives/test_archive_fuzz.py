"""Damaged tars and zips: no exception out of a build or a stream, no hang, every member accounted, and of the content that it has.

LATENTMILL_FUZZ=10000 tries so many mutations of each kind instead of two thousand.
"""

import gzip
import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from builders.archives.members import MAX_MEMBER_SIZE, all_members
from builders.archives.remote import open_file
from builders.archives.zips import count_zip, zip_names
from builders.core.errors import ArchiveError
from tests.builders.conftest import Build
from tests.support.judges import files_by_zipfile, members_by_others
from tests.support.mutations import mutated
from tests.support.raw import coco
from tests.support.raw.archive import dumps, write_tar, write_zip
from tests.support.raw.photos import jpeg, png

MUTATIONS = int(os.environ.get("LATENTMILL_FUZZ", "2000"))
PARTS = min(MUTATIONS, 10_000)  # of DiffusionDB in one folder
PICTURE = jpeg(0, (96, 80))
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def _members() -> list[tuple[str, bytes]]:
    members = [("a.jpg", PICTURE), ("a.txt", b"a"), ("a.json", b'{"url": "http://x"}'), ("x/b b.png", b"png")]
    return [*members, ("x/b b.txt", b"b"), ("y" * 130 + ".jpg", b"long"), ("y" * 130 + ".txt", b"short")]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_damaged_tar_is_rows_and_at_most_one_bad_archive(kind: str, build: Build, tmp_path: Path) -> None:
    """It is so in map mode too, where values pass Arrow, which holds no half characters."""
    root = tmp_path / "tars"
    write_tar(root / "whole.tar", _members())
    whole = (root / "whole.tar").read_bytes()
    if kind == "tar.gz":
        (root / "whole.tar").unlink()
        whole = gzip.compress(whole, 1, mtime=0)
        (root / "whole.tar.gz").write_bytes(whole)
    for seed in range(MUTATIONS):
        (root / f"{seed:05d}.{kind}").write_bytes(mutated(whole, seed))
    options = {"data_dir": str(root), "keep_rejected": True, "min_image_size": 1}
    rows = build("webdataset", streaming=True, **options)
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
    mapped = build("webdataset", **options)
    assert [(row["key"], row["reject"], row["caption"]) for row in mapped] == [
        (row["key"], row["reject"], row["caption"]) for row in rows
    ]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_damaged_zip_gives_members_or_says_so(compression: int, tmp_path: Path) -> None:
    """Each member that zipfile lists is there, with the content that zipfile reads; what it refuses is damaged here too.

    Damaged reads as nothing, which the gate calls undecodable. Of a member that claims more bytes than there are, or than any picture
    has, zipfile reads some.
    """
    path = tmp_path / "whole.zip"
    write_zip(path, _members(), compression)
    whole = path.read_bytes()
    for seed in range(MUTATIONS):
        data = mutated(whole, seed)
        try:
            ours = {member.name.partition("\0")[0]: member.read() for member in all_members(io.BytesIO(data))}
        except ArchiveError:
            continue
        for name, expected in files_by_zipfile(data, MAX_MEMBER_SIZE):
            assert name in ours, (seed, name)
            assert ours[name] in expected, (seed, name)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_build_of_damaged_zips_is_rows_and_at_most_one_bad_archive_each(
    compression: int, build: Build, tmp_path: Path
) -> None:
    """DiffusionDB has many; one of their members says the captions of the others."""
    pictures = {"a.webp": PICTURE, "b.webp": png(1, (96, 80)), "c.webp": b"none"}
    parameters = dumps({name: {"p": f"a caption of {name}"} for name in pictures})
    path = tmp_path / "whole.zip"
    write_zip(path, [*pictures.items(), ("part-000001.json", parameters)], compression)
    whole, root = path.read_bytes(), tmp_path / "raw"
    folder = root / "diffusiondb-large-part-1"
    folder.mkdir(parents=True)
    scores = []
    for seed in range(PARTS):
        (folder / f"part-{seed + 1:06d}.zip").write_bytes(mutated(whole, seed))
        scores += [
            {"image_name": name, "part_id": seed + 1, "image_nsfw": 0.0, "prompt_nsfw": 0.0}
            for name in pictures
        ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(scores), root / "metadata-large.parquet")
    by_archive: dict[str, dict[str, Any]] = {}
    for row in build("diffusiondb", data_dir=str(root), streaming=True, keep_rejected=True, min_image_size=1):
        archive, dot, name = row["source"].partition(".zip")
        by_archive.setdefault(archive + dot, {})[name] = row
    broken = 0
    for path in sorted(folder.iterdir()):
        found = by_archive.pop(str(path.relative_to(root)))
        rejects = [row["reject"] for row in found.values()]
        broken += rejects.count("bad_archive")
        assert rejects.count("bad_archive") <= 1
        for name, expected in files_by_zipfile(path.read_bytes(), MAX_MEMBER_SIZE):
            if "bad_archive" not in rejects and not name.endswith(".json"):
                row = found["/" + name.rpartition("/")[2]]
                assert row["reject"] or row["image"]["bytes"] in expected, path
    assert not by_archive and 0 < broken < PARTS


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_flipped_bit_in_a_zips_name_gives_no_picture_its_neighbours_caption(
    compression: int, build: Build, tmp_path: Path
) -> None:
    coco.make(tmp_path / "raw")
    path = tmp_path / "raw/val2014.zip"
    first, second = (f"val2014/COCO_val2014_{number:012d}.jpg" for number in (1, 3))
    write_zip(path, [(first, PICTURE)], compression)
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
    write_zip(path, [(name, PICTURE)])
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


@pytest.mark.parametrize("ranges", [1, 2, 5])
@pytest.mark.parametrize("claimed", range(7))
def test_a_zip_whose_end_says_too_few_entries_loses_none_without_a_word(
    claimed: int, ranges: int, tmp_path: Path
) -> None:
    write_zip(tmp_path / "whole.zip", _members())
    data = (tmp_path / "whole.zip").read_bytes()
    at = data.rindex(b"PK\5\6") + 8
    file, found = io.BytesIO(data[:at] + struct.pack("<2H", claimed, claimed) + data[at + 4 :]), []
    with pytest.raises(ArchiveError, match=f"more than the {claimed} entries"):
        for index in range(ranges):
            for member in all_members(file, index, ranges):
                found.append(member.name)
    assert found == [name for name, _ in _members()][:claimed]
    with pytest.raises(ArchiveError, match="more than"):
        list(zip_names(file))


def streamed_coco(build: Build, tmp_path: Path, **more: Any) -> list[dict[str, Any]]:
    """All rows, the rejected ones too."""
    where = {"data_dir": str(tmp_path / "raw"), "cache_dir": str(tmp_path / "cache")}
    return build("coco", split="validation", streaming=True, keep_rejected=True, **where, **more)


def test_a_build_of_a_damaged_zip_in_ranges_ends(build: Build, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    coco.make(tmp_path / "raw")
    whole = (tmp_path / "raw/val2014.zip").read_bytes()
    for seed in range(MUTATIONS // 20):
        (tmp_path / "raw/val2014.zip").write_bytes(mutated(whole, seed))
        assert streamed_coco(build, tmp_path)
