"""Any members in, the same members out, by any writer; and a file cut or changed anywhere is told, or loses nothing before it."""

import io
import tarfile
import zipfile

from hypothesis import given
from hypothesis import strategies as st

from builders.archives.members import iter_members
from builders.core.errors import ArchiveError

names = st.text(
    st.characters(exclude_categories=("C", "Z"), exclude_characters="/\\."), min_size=1, max_size=130
).filter(lambda name: name != "__MACOSX")
members = st.lists(
    st.tuples(names.map("{}.bin".format), st.binary(max_size=6000)),
    max_size=6,
    unique_by=lambda member: member[0],
)
formats = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def tar_of(contents: list[tuple[str, bytes]], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in contents:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def read(data: bytes) -> list[tuple[str, bytes]]:
    return [(member.name, member.read()) for member in iter_members(io.BytesIO(data))]


@given(members, formats)
def test_a_tar_gives_back_what_was_put_in(contents: list[tuple[str, bytes]], form: int) -> None:
    data = tar_of(contents, form)
    assert read(data) == contents
    assert [member.name for member in iter_members(io.BytesIO(data))] == [name for name, _ in contents]


@given(members.filter(len), formats, st.data())
def test_a_tar_cut_anywhere_is_told_and_gives_whole_members_only(
    contents: list[tuple[str, bytes]], form: int, data: st.DataObject
) -> None:
    whole = tar_of(contents, form)
    cut = whole[: data.draw(st.integers(0, len(whole.rstrip(b"\0")) - 1))]
    found = []
    try:
        for member in iter_members(io.BytesIO(cut)):
            found.append((member.name, member.read()))
    except ArchiveError:
        assert found == contents[: len(found)]
    else:
        raise AssertionError("a tar without an end was taken for whole")


@given(members, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), st.integers(1, 5))
def test_the_ranges_of_a_zip_give_back_what_was_put_in(
    contents: list[tuple[str, bytes]], compression: int, count: int
) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in contents:
            archive.writestr(name, data)
    found = []
    for index in range(count):
        found += [(member.name, member.read()) for member in iter_members(out, index, count)]
    assert found == contents
