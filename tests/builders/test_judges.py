"""The account of files adds up to what other programs list: GNU tar, zipinfo, find; and `imagefolder` knows no picture that we do not."""

import gc
import importlib
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from builders.core.images import decode_rgb
from tests.builders.conftest import Build
from tests.builders.test_builders import DATASETS
from tests.support.judges import listed_by_find, members_by_others, pack_by_tar, picture_by_imagemagick
from tests.support.raw.archive import write_tar, write_zip
from tests.support.raw.photos import encode, jpeg, photo, png, webp

HIDDEN = [("._a.jpg", b"fork"), ("__MACOSX/b.jpg", b"fork"), (".git/config", b"x"), (".DS_Store", b"x")]
WAYS = pytest.mark.parametrize("streaming", [False, True])


def left_out(caplog: pytest.LogCaptureFixture) -> dict[str, int]:
    """Count them by reason, as the account tells of them."""
    told = [message for message in caplog.messages if "left out: " in message]
    found: dict[str, int] = {}
    for message in told:
        for reason, count in re.findall(r"(\w+) ([\d,]+)(?=:|,|$)", message.partition("left out: ")[2]):
            found[reason] = found.get(reason, 0) + int(count.replace(",", ""))
    return found


@pytest.mark.parametrize("name", DATASETS)
def test_every_member_that_tar_and_zipinfo_list_is_a_row_or_counted(
    name: str, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = importlib.import_module(f"tests.support.raw.{name}")
    root = tmp_path / "raw"
    root.mkdir()
    raw.make(root)
    options = raw.options(root) if hasattr(raw, "options") else {}
    for config, splits in raw.EXPECTED.items():
        caplog.clear()
        rows = [
            row
            for split in splits
            for row in build(
                name,
                config,
                split=split,
                streaming=True,
                data_dir=str(root),
                keep_rejected=True,
                min_image_size=1,
                **options,
            )
        ]
        sources = {row["source"] for row in rows}
        broken = {row["source"] for row in rows if row["reject"] == "bad_archive"}
        archives = [
            path for path in sorted(listed_by_find(root)) if any(s.startswith(f"{path}/") for s in sources)
        ]
        assert archives
        unexplained = []
        for archive in archives:
            known = {source.removeprefix(f"{archive}/") for source in sources}
            stems = {os.path.splitext(known_name)[0] for known_name in known}
            for member in members_by_others(root / archive):
                folder, slash, base = member.rpartition("/")
                sample = folder + slash + base.partition(".")[0]
                table = name == "diffusiondb" and member.endswith(".json")
                named = member in known or sample in known or os.path.splitext(member)[0] in stems
                if not named and not table and archive not in broken:
                    unexplained.append(member)
        assert len(unexplained) == left_out(caplog).get("hidden", 0), unexplained


@WAYS
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_hidden_members_are_counted_and_named(
    kind: str, streaming: bool, build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "tar":
        members = [("a.jpg", jpeg(0)), ("a.txt", b"a")]
        write_tar(tmp_path / "raw/0.tar", [*HIDDEN, *members])
        write_tar(tmp_path / "raw/1.tar", [*members, *HIDDEN])
        build("webdataset", data_dir=str(tmp_path / "raw"), streaming=streaming)
        expected = "hidden 8: 0.tar/._a.jpg, 0.tar/__MACOSX/b.jpg, 0.tar/.git/config, ..."
    else:
        raw = importlib.import_module("tests.support.raw.coco")
        raw.make(tmp_path / "raw")
        zipped = [(f"val2014/COCO_val2014_{1:012d}.jpg", jpeg(0))]
        write_zip(tmp_path / "raw/val2014.zip", [*zipped, *HIDDEN])
        build("coco", split="validation", data_dir=str(tmp_path / "raw"), streaming=streaming)
        expected = "hidden 4: val2014.zip/._a.jpg, val2014.zip/__MACOSX/b.jpg, val2014.zip/.git/config, ..."
    assert expected in caplog.text


@pytest.mark.parametrize("blocking", [1, 20, 64, 2048])
def test_a_tar_that_is_padded_to_its_record_is_whole(build: Build, tmp_path: Path, blocking: int) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/a.jpg").write_bytes(jpeg(0))
    (tmp_path / "files/a.txt").write_bytes(b"a")
    (tmp_path / "raw").mkdir()
    pack_by_tar(tmp_path / "raw/0.tar", tmp_path / "files", f"--blocking-factor={blocking}")
    rows = build("webdataset", data_dir=str(tmp_path / "raw"), keep_rejected=True)
    assert [(row["caption"], row["reject"]) for row in rows] == [("a", None)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of everything that people have in one."""
    root = tmp_path / "photos"
    files = {
        "train/a.jpg": jpeg(0), "train/a.txt": b"a", "train/a.caption": b"second", "train/b.png": png(1),
        "train/c.webp": webp(2), "train/c.txt": b"c", "train/d.jfif": jpeg(3), "train/e.avif": encode(photo(1), "AVIF"),
        "train/f.heic": b"\0\0\0\x18ftypheic", "train/g.jpg": b"", "train/h.jpg": jpeg(4)[:2000], "train/h.txt": b"cut",
        "train/deep/er/i.JPG": jpeg(5), "train/deep/er/i.TXT": b"i", "train/j.jpg.txt": b"j", "train/j.jpg": jpeg(6),
        "train/.DS_Store": b"x", "train/.hidden/k.jpg": jpeg(7), "__MACOSX/l.jpg": b"x", "train/notes.md": b"x",
        "train/m.jpg": jpeg(8), "train/m.png": png(8), "train/m.txt": b"both", "train/n.txt": b"no picture",
        "val/metadata.csv": b"file_name,caption\no.jpg,from the table\ngone.jpg,gone\n", "val/o.jpg": jpeg(9), "val/o.txt": b"not this",
        "outside.jpg": jpeg(0), "outside.txt": b"outside", "Thumbs.db": b"x",
    }  # fmt: skip
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@WAYS
def test_every_file_that_find_lists_is_a_row_or_its_caption_or_counted(
    folder: Path, build: Build, caplog: pytest.LogCaptureFixture, streaming: bool
) -> None:
    rows = [
        row
        for split in ("train", "validation")
        for row in build("folder", data_dir=str(folder), split=split, keep_rejected=True, streaming=streaming)
    ]
    pictures = {row["source"] for row in rows if (folder / row["source"]).is_file()}
    captions = {"a.caption", "c.txt", "h.txt", "deep/er/i.TXT", "j.jpg.txt", "m.txt"}
    alone = {row["source"] for row in rows if row["reject"] == "missing_image"} - {"val/gone.jpg"}
    assert alone == {"train/n.txt"}
    counted = left_out(caplog)
    assert counted == {
        "hidden": 3,
        "not_image_or_caption": 2,
        "second_caption_file": 2,
        "outside_of_splits": 2,
    }
    table = 1
    assert len(listed_by_find(folder)) == len(pictures) + len(captions) + table + sum(counted.values())


# imagefolder leaves its table open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_picture_of_imagefolder_is_ours_or_in_the_account(
    folder: Path, build: Build, tmp_path: Path
) -> None:
    theirs: set[str] = set()
    for split in ("train", "validation"):
        names = "train" if split == "train" else "val"
        found: Any = datasets.load_dataset(
            "imagefolder", data_dir=str(folder / names), drop_labels=True, cache_dir=str(tmp_path / "cache")
        )
        for part in found.values():
            paths = [row["path"] for row in part.cast_column("image", datasets.Image(decode=False))["image"]]
            theirs |= {os.path.relpath(path, folder) for path in paths}
    # imagefolder leaves its table open.
    gc.collect()
    theirs.remove("train/j.jpg.txt")  # for which it takes whatever has .jpg in its name
    ours = {
        row["source"]
        for split in ("train", "validation")
        for row in build("folder", data_dir=str(folder), split=split, keep_rejected=True)
    }
    assert len(theirs) >= 8 and theirs <= ours


def _transparent(mode: str) -> Image.Image:
    """A photograph that fades from left to right."""
    picture = photo(5).convert("RGBA")
    picture.info = {}
    picture.putalpha(Image.linear_gradient("L").rotate(90).resize(picture.size))
    return picture.convert(mode)


def _grey_of_16_bits() -> Image.Image:
    greys = np.asarray(photo(1).convert("L")).astype(np.uint16) * 257
    return Image.fromarray(greys)


def _png_of_16_bits() -> bytes:
    """16 bits in each of three channels, which Pillow reads and does not write."""
    pixels = (np.asarray(photo(6).resize((64, 48))).astype(">u2") * 257).reshape(48, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


PICTURES = {
    "jpeg": jpeg(0),
    "jpeg, turned": jpeg(1, orientation=6),
    "jpeg, grey": jpeg(2, mode="L"),
    "jpeg, progressive": encode(photo(3), "JPEG", progressive=True),
    "png": png(0),
    "png, palette": encode(photo(1).convert("P"), "PNG"),
    "png, 16 bits": encode(photo(1).convert("L").convert("I;16").point(lambda grey: grey * 257), "PNG"),
    "webp": encode(photo(2), "WEBP"),
    "webp, lossless": webp(3),
    "gif": encode(photo(4), "GIF"),
    "png, transparent": encode(_transparent("RGBA"), "PNG"),
    "png, grey and transparent": encode(_transparent("LA"), "PNG"),
    "png, one colour transparent": encode(photo(1).quantize(16), "PNG", transparency=3),
    "png, 16 bits of colour": _png_of_16_bits(),
    "webp, transparent": encode(_transparent("RGBA"), "WEBP", lossless=True),
    "gif, animated": encode(photo(0), "GIF", save_all=True, append_images=[photo(1), photo(2)]),
    "gif, one colour transparent": encode(photo(1).quantize(16), "GIF", transparency=3),
    "png, animated": encode(photo(0), "PNG", save_all=True, append_images=[photo(1)]),
    "tiff, two pages": encode(photo(1), "TIFF", save_all=True, append_images=[photo(2)]),
    "tiff, 16 bits of grey": encode(_grey_of_16_bits(), "TIFF"),
    "tiff, packed": encode(photo(1), "TIFF", compression="tiff_lzw"),
    "mpo": encode(photo(3), "MPO", save_all=True, append_images=[photo(4)]),
    "bmp": encode(photo(0), "BMP"),
    "tiff": encode(photo(1), "TIFF"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_what_comes_out_as_a_picture_is_what_imagemagick_reads(kind: str) -> None:
    theirs = picture_by_imagemagick(PICTURES[kind])
    if theirs is None:
        pytest.skip("this ImageMagick does not read the format")
    ours = np.asarray(decode_rgb(PICTURES[kind]))
    assert len(theirs) == ours.size
    difference = np.abs(np.frombuffer(theirs, np.uint8).astype(int) - ours.reshape(-1))
    assert difference.mean() < 0.5 and np.percentile(difference, 99.9) <= 4
