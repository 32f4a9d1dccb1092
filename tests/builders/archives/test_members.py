"""Archives as streams: the same members as the standard library reads, and no surprise from a damaged one."""

import gzip
import io
import random
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from builders.archives import members as archives
from builders.archives.member import Member
from builders.archives.members import group_by_key, iter_members
from builders.archives.zips import count_zip, zip_names
from builders.core.errors import ArchiveError
from tests.support.raw.archive import write_tar, write_zip

MEMBERS = [
    ("a.jpg", b"x" * 700),
    ("./dot/b.jpg", b""),
    ("deep/" * 20 + "c.jpg", b"c"),
    ("long/" * 40 + "n" * 90 + ".jpg", b"long name"),
    ("名前.txt", b"unicode"),
    ("block.bin", b"z" * 1024),
]
HIDDEN = [("._a.jpg", b"1"), ("d/.DS_Store", b"2"), ("__MACOSX/x.jpg", b"3"), (".git/x.jpg", b"4")]


def read(file: Any, *args: Any) -> Any:
    return [(member.name, member.read()) for member in iter_members(file, *args)]


def tar_bytes(format: Any = tarfile.PAX_FORMAT, members: Any = MEMBERS, mode: Any = "w") -> Any:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("not-a-file")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    return out.getvalue()


def zip_bytes(compression: Any = zipfile.ZIP_DEFLATED, members: Any = MEMBERS) -> Any:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("folder/", b"")
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


PLAIN = [(name.removeprefix("./"), data) for name, data in MEMBERS]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_tar(format: Any, pack: Any) -> None:
    assert read(io.BytesIO(pack(tar_bytes(format, MEMBERS + HIDDEN)))) == PLAIN


def test_ustar_prefix_and_old_tars_without_a_magic() -> None:
    short = [(name, data) for name, data in MEMBERS if len(name) < 200 and name.isascii()]
    data = tar_bytes(tarfile.USTAR_FORMAT, short)
    assert read(io.BytesIO(data)) == [(name.removeprefix("./"), body) for name, body in short]
    header = bytearray(tar_bytes(tarfile.USTAR_FORMAT, [("a", b"old")]))
    header[257:265] = bytes(8)
    assert read(io.BytesIO(signed(header))) == [("a", b"old")]


def signed(tar: Any) -> Any:
    """The tar with the checksum of its first header mended."""
    tar[148:156] = b" " * 8
    tar[148:155] = f"{sum(tar[:512]):06o}\0".encode()
    return bytes(tar)


def test_a_size_in_base_256() -> None:
    data = bytearray(tar_bytes(tarfile.USTAR_FORMAT, [("a", b"sized")]))
    data[124:136] = b"\x80" + (5).to_bytes(11, "big")
    assert read(io.BytesIO(signed(data))) == [("a", b"sized")]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip(compression: Any) -> None:
    data = zip_bytes(compression, MEMBERS + HIDDEN)
    assert read(io.BytesIO(data)) == PLAIN
    assert count_zip(io.BytesIO(data)) == 1 + len(MEMBERS + HIDDEN)
    assert next(zip_names(io.BytesIO(data))) == "folder/"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_ranges_of_a_zip_are_the_whole_in_order(count: Any) -> None:
    file = io.BytesIO(zip_bytes())
    assert [row for index in range(count) for row in read(file, index, count)] == PLAIN


def test_zip64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 500)
    data = zip_bytes(zipfile.ZIP_STORED)
    assert b"PK\6\6" in data and b"PK\6\7" in data
    at = data.rindex(b"PK\5\6")
    # So do writers that put all of it into the zip64 record.
    data = data[: at + 8] + b"\xff" * 12 + data[at + 20 :]
    assert read(io.BytesIO(data)) == PLAIN


def test_a_member_may_be_left_unread_and_is_skipped() -> None:
    for data in (tar_bytes(), gzip.compress(tar_bytes()), zip_bytes()):
        assert [member.name for member in iter_members(io.BytesIO(data))] == [name for name, _ in PLAIN]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("is_read", [True, False])
def test_a_cut_tar_gives_its_whole_members_and_then_raises(pack: Any, is_read: Any) -> None:
    members = [(f"{number}.jpg", random.Random(number).randbytes(3000)) for number in range(9)]
    data = pack(tar_bytes(tarfile.USTAR_FORMAT, members))
    found = []
    with pytest.raises(ArchiveError):
        for member in iter_members(io.BytesIO(data[: len(data) // 2])):
            if is_read:
                assert member.read() == dict(members)[member.name]
            found.append(member.name)
    assert 1 <= len(found) < 9


def test_a_zip_whose_directory_lies_elsewhere_than_its_end_says_is_told() -> None:
    """Bytes in its midst, or a zip before it, whose members would vanish: what lies at the named place is not what its entries are of."""
    more, data = b"#!/bin/sh\n" * 9, zip_bytes()
    for damaged in (data[:4] + more + data[4:], zip_bytes(members=HIDDEN) + data):
        with pytest.raises(ArchiveError, match="is not where its end says"):
            count_zip(io.BytesIO(damaged))
    signed = data[: data.rindex(b"PK\5\6")] + b"PK\5\5\x04\0sign" + data[data.rindex(b"PK\5\6") :]
    assert read(io.BytesIO(signed)) == read(io.BytesIO(data))


@pytest.mark.parametrize("before", [b"#", b"#!/bin/sh\n" * 9, b"MZ" + bytes(70_000), b"\1" * 512])
@pytest.mark.parametrize("is_large", [False, True])
def test_a_zip_behind_other_bytes_reads_as_zipfile_reads_it(
    before: bytes, is_large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs are so that unpack themselves; with offsets that count these bytes, as `zip -A` writes them, and without."""
    if is_large:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 500)
    counted = io.BytesIO(before)
    with zipfile.ZipFile(counted, "a") as archive:
        for name, content in MEMBERS:
            archive.writestr(name, content)
    for data in (before + zip_bytes(), counted.getvalue()):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            theirs = [(info.filename, archive.read(info)) for info in archive.infolist() if not info.is_dir()]
        file = io.BytesIO(data)
        assert read(file) == [(name.removeprefix("./"), content) for name, content in theirs] == PLAIN
        assert [found for index in range(3) for found in read(file, index, 3)] == PLAIN


def test_a_damaged_tar_is_no_zip_for_the_zip_that_it_holds() -> None:
    """Its other members would vanish."""
    data = tar_bytes(members=[("a.jpg", b"a"), ("a.zip", zip_bytes())])
    with pytest.raises(ArchiveError, match="its checksum is wrong"):
        read(io.BytesIO(b"b" + data[1:]))


def test_a_cut_zip_raises() -> None:
    with pytest.raises(ArchiveError, match="cut short"):
        read(io.BytesIO(zip_bytes()[:-30]))


def test_a_damaged_or_encrypted_zip_member_reads_as_nothing() -> None:
    data = bytearray(zip_bytes(zipfile.ZIP_STORED, [("a", b"first" * 9), ("b", b"second")]))
    data[data.index(b"first")] ^= 1
    assert read(io.BytesIO(bytes(data))) == [("a", b""), ("b", b"second")]
    data[data.index(b"PK\1\2") + 8] |= 1
    assert read(io.BytesIO(bytes(data))) == [("a", b""), ("b", b"second")]


def test_a_member_larger_than_any_image_reads_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBER_SIZE", 800)
    expected = [(name, b"" if len(data) > 800 else data) for name, data in PLAIN]
    assert read(io.BytesIO(tar_bytes())) == expected == read(io.BytesIO(zip_bytes()))


def test_a_deflated_bomb_stops_at_its_declared_size() -> None:
    data = bytearray(zip_bytes(members=[("bomb", bytes(10**7))]))
    at = data.rindex(b"PK\1\2") + 24
    data[at : at + 4] = (10).to_bytes(4, "little")
    assert read(io.BytesIO(bytes(data))) == [("bomb", b"")]


@pytest.mark.parametrize(
    "data", [tar_bytes(), gzip.compress(tar_bytes()), zip_bytes(), b"", b"PK", b"\x1f\x8b", b"<html>" * 200]
)
def test_damage_raises_nothing_but_archive_error(data: Any) -> None:
    rng = random.Random(8)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(0, 6) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read(io.BytesIO(bytes(damaged[: rng.choice((len(damaged), rng.randint(0, len(damaged))))])))
        except ArchiveError:
            pass


def test_group_by_key() -> None:
    members = [
        ("a.jpg", b"1"),
        ("a.TXT", b"2"),
        ("b.seg.png", b"3"),
        ("d/b.jpg", b"4"),
        ("d/b.jpg", b"5"),
        ("e", b"6"),
    ]
    groups = list(group_by_key(Member(name, partial(bytes, data)) for name, data in members))
    assert groups == [
        ("a", {"jpg": b"1", "txt": b"2"}),
        ("b", {"seg.png": b"3"}),
        ("d/b", {"jpg": b"4"}),
        ("d/b", {"jpg": b"5"}),
        ("e", {"": b"6"}),
    ]


def test_reading_a_tar_is_faster_than_the_standard_library(tmp_path: Path) -> None:
    """The reason why the headers are read here at all."""
    import time

    write_tar(tmp_path / "x.tar", ((f"{number:09d}.jpg", b"x" * 2000) for number in range(3000)))
    write_zip(tmp_path / "x.zip", ((f"{number:09d}.jpg", b"x" * 2000) for number in range(3000)))

    def standard() -> Any:
        with tarfile.open(tmp_path / "x.tar") as tar:
            return sum(len(file.read()) for info in tar if (file := tar.extractfile(info)))

    def ours() -> Any:
        with open(tmp_path / "x.tar", "rb") as file:
            return sum(len(member.read()) for member in iter_members(file))

    times: dict[Any, float] = {}
    for read_all in (standard, ours, standard, ours):
        start = time.process_time()
        assert read_all() == 6_000_000
        times[read_all] = min(times.get(read_all, 9), time.process_time() - start)
    assert times[ours] < times[standard] / 1.5


@pytest.mark.parametrize("declared", [0, 1, 2])
def test_a_pax_size_is_that_of_one_member(declared: Any) -> None:
    """It is what counts where it stands, and says nothing of the members before and behind it."""
    contents, out = [("a", b"x" * 700), ("b", b"y" * 30), ("c", b"z" * 1500)], io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for index, (name, data) in enumerate(contents):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = {"size": str(len(data))} if index == declared else {"comment": "none"}
            tar.addfile(info, io.BytesIO(data))
    assert read(out) == contents


@pytest.mark.parametrize("size", [3000, 30_000])
@pytest.mark.parametrize("skip", [True, False])
def test_a_tar_cut_inside_a_member_is_told_whether_it_is_read_or_skipped(size: Any, skip: Any) -> None:
    """Small members are read to get past them, large ones are sought over: an end behind the file's end is no end."""
    data = tar_bytes(members=[(f"{n}.json", random.Random(n).randbytes(size)) for n in range(3)])
    padded = size + -size % 512
    for cut in (512 + padded + 512 + size // 3, 2 * (512 + padded) - 1, len(data) - 10_240 - 512):
        found = []
        with pytest.raises(ArchiveError):
            for member in iter_members(io.BytesIO(data[:cut])):
                found.append(member.name if skip else len(member.read()))
        assert found[:1] == ["0.json" if skip else size]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("limit", [5, 1000])
def test_zip64_sizes(monkeypatch: pytest.MonkeyPatch, compression: Any, limit: Any) -> None:
    """Either of packed and unpacked size may be in the 64-bit field, or both."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    contents = [("a.txt", b"abc" * 1000), ("b.txt", b"short"), ("c.txt", random.Random(0).randbytes(2000))]
    assert read(io.BytesIO(zip_bytes(compression, contents))) == contents
