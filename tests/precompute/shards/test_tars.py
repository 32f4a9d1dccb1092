"""The reader of finished tars, held against tarfile."""

import io
import tarfile
from pathlib import Path

import numpy as np

from precompute.shards.tars import BadTar, walk_tar


def test_the_tar_reader_agrees_with_tarfile(tmp_path: Path) -> None:
    names = ["a.txt", "b" * 150 + ".txt", "d/" * 60 + "c.npy", "é.txt"]
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for size, name in zip([0, 511, 512, 9 << 20], names, strict=True):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
    seen = bytearray()
    with open(tmp_path / "x.tar", "rb") as file:
        ours = [(name, offset, len(data)) for name, offset, data in walk_tar(file, seen.extend)]
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert ours == [(info.name, info.offset_data, info.size) for info in tar]
    assert bytes(seen) == (tmp_path / "x.tar").read_bytes()


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
