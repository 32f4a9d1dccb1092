"""The reader of finished tars, held against tarfile."""

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from precompute.shards.tars import MAX_MEMBER, READ, BadTar, walk_tar


def digest(data: bytes | bytearray | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_the_tar_reader_agrees_with_tarfile(tmp_path: Path, form: int) -> None:
    """Names long and short in turn; members that lie in one block of what is read, over its end, and are longer than it."""
    names = ["b" * 90 + ".txt", "d/" * 60 + "c.npy", "é.txt", "plain.txt"]
    sizes = [0, 511, READ + 1, 512, 3 * READ + 7, READ - 1, 1, READ]
    random = np.random.default_rng(0)
    with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
        for size, name in zip(sizes, names * 2, strict=True):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(random.bytes(size)))
    seen = bytearray()
    with open(tmp_path / "x.tar", "rb") as file:
        ours = [(name, offset, len(data), digest(data)) for name, offset, data in walk_tar(file, seen.extend)]
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert ours == [(m.name, m.offset_data, m.size, digest(tar.extractfile(m).read())) for m in tar]
    assert digest(seen) == digest((tmp_path / "x.tar").read_bytes())


def header(name: str = "a.txt", size: int = 3, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf()


WHOLE = header() + b"abc" + bytes(509) + bytes(1024)
WRONG_SUM = header().replace(b"a.txt", b"b.txt")


def test_files_of_an_old_tar_are_files() -> None:
    data = header(kind=tarfile.AREGTYPE) + WHOLE[512:]
    assert [(name, bytes(data)) for name, _, data in walk_tar(io.BytesIO(data), len)] == [("a.txt", b"abc")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "breaks off at byte 0"),
        (WHOLE[:514], "breaks off at byte 514"),
        (WHOLE[:1024], "breaks off at byte 1,024"),
        (WHOLE[:1024] + b"x" * 512 + bytes(1024), "has no valid header at byte 1,024"),
        (WHOLE[:1024] + WRONG_SUM + WHOLE[512:], "has a damaged header at byte 1,024"),
        (header(size=MAX_MEMBER + 1) + WHOLE[512:], "has a damaged header at byte 0"),
        (WHOLE[:1024] + header(kind=tarfile.DIRTYPE, size=0) + bytes(1024), "no file at byte 1,024"),
        (WHOLE + WHOLE, "goes on behind its end at byte 1,536"),
        (WHOLE + bytes(2 * READ) + b"x", "goes on behind its end at byte 1,536"),
    ],
)
def test_a_tar_that_is_not_whole_is_told_with_the_place(data: bytes, told: str) -> None:
    with pytest.raises(BadTar, match=told):
        list(walk_tar(io.BytesIO(data), lambda block: None))


def test_the_tar_reader_survives_noise() -> None:
    random = np.random.default_rng(0)
    good = tarfile.TarInfo("a.txt").tobuf() + bytes(1024)
    for _ in range(300):
        data = bytearray(good)
        for position in random.integers(0, len(data), 3):
            data[position] = random.integers(256)
        try:
            list(walk_tar(io.BytesIO(data), lambda block: None))
        except BadTar:
            pass
