"""A thousand rows, a tenth of them bad in every way there is: the run succeeds, and its ledger says which and why."""

import io
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from builders.core.account import REASONS
from builders.core.base import SourceRow
from builders.core.images import UndecodableImage, decode_rgb, is_whole
from builders.webdataset import Webdataset
from loader.format import Manifest
from precompute import run
from precompute.encode.image import ImageEncoder
from precompute.runtime import session
from precompute.verify import Config, verify
from tests.support.raw.photos import HTML, encode, jpeg, truncated

TARS, ROWS = 10, 100
SIZE = (256, 256)
LINK = b"a symbolic link"


def grey(level: int) -> bytes:
    return encode(Image.new("RGB", SIZE, (level, level, level)), "PNG")


def bomb() -> bytes:
    """A PNG header of 60,000 x 60,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0" * 40
    )


def damaged_in_its_middle() -> bytes:
    """A JPEG that passes the gate and does not decode."""
    data = bytearray(jpeg(3, SIZE))
    middle = len(data) // 2
    data[middle : middle + 16] = b"\xff\xc0" * 8
    assert is_whole(bytes(data), "JPEG")
    with pytest.raises(UndecodableImage):
        decode_rgb(bytes(data))
    return bytes(data)


# what is in the tar instead of a photograph and its caption, and what must become of it
BAD: list[tuple[str, dict[str, bytes], str]] = [
    ("html", {"jpg": HTML, "txt": b"a page"}, "undecodable"),
    ("empty", {"jpg": b"", "txt": b"nothing"}, "undecodable"),
    ("cut", {"jpg": truncated(jpeg(3, SIZE)), "txt": b"half"}, "undecodable"),
    (
        "noise",
        {"jpg": jpeg(0, SIZE)[:300] + bytes(range(256)) * 20 + b"\xff\xd9", "txt": b"noise"},
        "undecodable",
    ),
    ("middle", {"jpg": damaged_in_its_middle(), "txt": b"passes the gate"}, "undecodable"),
    ("bomb", {"png": bomb(), "txt": b"a bomb"}, "too_large"),
    ("small", {"jpg": jpeg(1, (300, 200)), "txt": b"small"}, "too_small"),
    ("silent", {"jpg": jpeg(2, SIZE)}, "missing_caption"),
    ("tags", {"jpg": jpeg(2, SIZE), "txt": b"<br> https://example.com"}, "empty_caption"),
    ("page", {"jpg": jpeg(2, SIZE), "txt": b"a page of words " * 2000}, "caption_too_long"),
    ("gbk", {"jpg": jpeg(2, SIZE), "txt": "红色的汽车".encode("gbk")}, "unreadable_text"),
    ("apple", {"jpg": b"\0\0\0\x18ftypheic" + bytes(99), "txt": b"HEIC"}, "unsupported_format"),
    ("link", {"jpg": LINK, "txt": b"a link to nowhere"}, "unreadable"),
    ("gone", {"txt": b"a caption and no image"}, "missing_image"),
    ("nsfw", {"jpg": jpeg(4, SIZE), "txt": b"flagged"}, "unsafe"),
    ("k003", {"jpg": jpeg(4, SIZE), "txt": b"again"}, "duplicate_key"),
    ("white", {"png": grey(255), "txt": b"overflows in any precision"}, "non_finite"),
    ("bright", {"png": grey(230), "txt": b"overflows in float16 only"}, "ok"),
]


class Overflowing(torch.nn.Module):
    """Small, and in float16 infinite where it is bright; where it is white, in float32 too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1, 3, 8, 8), 1 / 192))
        self.config = SimpleNamespace(scaling_factor=0.5)

    def encode(self, x: torch.Tensor) -> SimpleNamespace:
        mean = torch.nn.functional.conv2d(x, self.weight, stride=8)
        mean = mean * 1e5 / 1e5 + torch.relu(mean - 0.99) * 1e9
        # Two channels: no autoencoder makes one value of a flat picture, which verify would tell.
        mean = torch.cat([mean, mean / 2], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.ones_like(mean)))


def write(folder: Path, number: int) -> list[tuple[str, str]]:
    """One tar; what must become of each of its keys, in order."""
    good = [
        (f"k{index:03d}", {"jpg": jpeg(index, SIZE), "txt": f"caption {index}".encode()}, "ok")
        for index in range(10)
    ]
    rows = [(f"k{index:03d}", good[index % 10][1], "ok") for index in range(ROWS - len(BAD))]
    for place, bad in enumerate(BAD):
        rows.insert(5 + 7 * place, bad)
    with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
        for name, parts, _ in rows:
            for extension, data in parts.items():
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(data)
                if data is LINK:
                    info.type, info.size, info.linkname = tarfile.SYMTYPE, 0, "nowhere"
                tar.addfile(info, io.BytesIO(data))
    return [(f"{number:05d}-{name}", reason) for name, _, reason in rows]


@pytest.fixture
def flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reject as a dataset with safety scores does: the row of `nsfw`."""
    read = Webdataset._read

    def flag(self: Webdataset, shard: Any) -> Iterator[SourceRow]:
        for row in read(self, shard):
            yield row._replace(reject="unsafe") if row.key.endswith("nsfw") else row

    monkeypatch.setattr(Webdataset, "_read", flag)


def convert(raw: Path, output: Path) -> None:
    run.run(
        run.Config(
            "builders/webdataset",
            output,
            data_dir=raw,
            text_encoder=("toy",),
            resolutions=(64,),
            num_threads=2,
        )
    )


def overflowing(name: str, device: torch.device, dtype: str) -> ImageEncoder:
    return ImageEncoder(Overflowing().half(), {"model": "overflowing"}, device, torch.float16)


@pytest.mark.usefixtures("flagged")
def test_ledger_says_which_rows_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, output = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    expected = [row for number in range(TARS) for row in write(raw, number)]
    assert len(expected) == TARS * ROWS
    # One more archive, cut inside the photograph of its fourth row.
    last = write(raw, TARS)
    with tarfile.open(raw / f"{TARS:05d}.tar") as tar:
        cut = next(member for member in tar if member.name == "k003.jpg").offset_data + 1000
    data = (raw / f"{TARS:05d}.tar").read_bytes()
    (raw / f"{TARS:05d}.tar").write_bytes(data[:cut])
    expected += [*last[:3], (None, "bad_archive")]

    monkeypatch.setattr(session, "open_image_encoder", overflowing)
    # The gate has seen how large an image is: nobody looks again.
    monkeypatch.delattr("precompute.input.pixels.probe")
    convert(raw, output)

    found = [
        (row["key"], row["status"])
        for path in sorted(output.glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert [(key if reason != "bad_archive" else None, reason) for key, reason in found] == expected
    train = Manifest.from_json((output / "manifest.json").read_bytes()).splits["train"]
    counts = Counter(reason for _, reason in expected)
    assert counts.pop("ok") == train.samples
    assert train.rejected == counts
    assert set(counts) == {*REASONS, "non_finite"}, "every reason there is"
    assert not verify(Config(str(output))).findings


@pytest.mark.usefixtures("flagged")
def test_rescued_rows_hold_the_values_of_wider_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, output = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    write(raw, 0)
    monkeypatch.setattr(session, "open_image_encoder", overflowing)
    convert(raw, output)
    with tarfile.open(output / "train-00000.tar") as tar:
        arrays = {
            member.name.partition(".")[0]: np.load(io.BytesIO(tar.extractfile(member).read()))
            for member in tar
            if "moments" in member.name
        }
    np.testing.assert_allclose(arrays["00000-bright"][0], 230 / 127.5 - 1, rtol=1e-2)
    assert all(np.isfinite(array).all() for array in arrays.values())
