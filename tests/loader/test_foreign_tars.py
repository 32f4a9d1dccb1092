"""Folders of tars that somebody else wrote: what is readable is read, what is not is told, and nothing else suffers."""

import io
import logging
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader import make_loader
from loader.format import FormatError
from loader.tar_headers import TarCut, tar_members


def write_tar(path: Path, names: list[str], fortran: bool = False, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for number, name in enumerate(names):
            array = np.arange(4 * 8 * 8, dtype=np.float16).reshape(4, 8, 8) + number
            data = io.BytesIO()
            np.save(data, np.asfortranarray(array) if fortran else array)
            for extension, content in (("latents_256.npy", data.getvalue()), ("txt", b"hello")):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def read(folder: Path) -> dict[str, Any]:
    batches = make_loader(folder, 1, extras="key", text_encoders=[], drop_last=False, shuffle=False)
    found = {batch["key"][0]: batch["image_latents"][0] for batch in batches}
    assert batches.stats()["substitutes"] == 0
    batches.close()
    return found


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write_tar(tmp_path / "tars" / "a.tar", [f"k{n}" for n in range(6)])
    write_tar(tmp_path / "tars" / "b.tar", [f"m{n}" for n in range(6)])
    return tmp_path / "tars"


@pytest.mark.parametrize("junk", [b"", b"\x00\x05\x16\x07" + bytes(4092), b"x" * 5000], ids=["empty", "AppleDouble", "noise"])  # fmt: skip
@pytest.mark.parametrize("name", ["._a.tar", "0.tar", "c.tar"])
def test_one_file_that_is_no_tar_stops_nothing(
    good: Path, caplog: pytest.LogCaptureFixture, junk: bytes, name: str
) -> None:
    (good / name).write_bytes(junk)
    assert len(read(good)) == 12
    if not name.startswith("."):
        assert f"{name}: " in caplog.text and "it is left out" in caplog.text


def test_nothing_but_junk_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"x" * 5000)
    with pytest.raises(ValueError, match=r"no tar there holds latents_R.npy.*a\.tar: not a tar header at 0"):
        read(tmp_path)


@pytest.mark.parametrize("cut", range(1000, 12_000, 700))
def test_a_cut_tar_is_told_with_counts(good: Path, caplog: pytest.LogCaptureFixture, cut: int) -> None:
    data = (good / "b.tar").read_bytes()
    (good / "b.tar").write_bytes(data[:cut])
    found = read(good)
    left = sum(name.startswith("m") for name in found)
    # A sample takes 2560 bytes; its array, which is what is read, ends after 1152.
    assert left == min(6, max(0, (cut + 1408) // 2560)) and len(found) == 6 + left
    if left:
        assert "b.tar is cut or damaged" in caplog.text and "only those before it are read" in caplog.text


def test_folders_that_are_links_are_followed_and_circles_end(good: Path, tmp_path: Path) -> None:
    top = tmp_path / "top"
    write_tar(top / "p1" / "z.tar", ["z0", "z1"])
    (top / "p0").symlink_to(good)
    (top / "p1" / "circle").symlink_to(top)
    assert len(read(top)) == 14


def test_fortran_order_is_read_as_what_it_is(tmp_path: Path) -> None:
    write_tar(tmp_path / "f" / "a.tar", ["k0", "k1"], fortran=True)
    write_tar(tmp_path / "c" / "a.tar", ["k0", "k1"])
    fortran, plain = read(tmp_path / "f"), read(tmp_path / "c")
    assert all((fortran[key] == plain[key]).all() for key in plain)


def test_a_cut_index_is_made_anew(good: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(good)
    kept = list((cache / "index").iterdir())
    assert len(kept) == 2 and all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    for size in (0, 10, 100, 700):
        for path in kept:
            path.write_bytes(path.read_bytes()[:size])
        assert len(read(good)) == 12
    assert "scanning the tar again" in caplog.text
    caplog.clear()
    assert len(read(good)) == 12 and not caplog.records


def test_a_cache_that_cannot_be_made_is_told_once(
    good: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", "/proc/nowhere")
    assert len(read(good)) == 12
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "/proc/nowhere" in caplog.text and "Set cache_dir" in caplog.text


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "hostile",
    [
        header(b"a.jpg", b"-1000\0"),
        header(b"a.jpg", b"\xff" * 11 + b"\0"),
        header(b"a.jpg", b"\x80" + b"\xff" * 11),
        header(b"a.jpg", b"77777777777\0"),
        header(b"p", b"00000000013\0", b"x") + b"0 path=x\n".ljust(512, b"\0"),
        header(b"p", b"00000000013\0", b"x") + b"99 path=x\n".ljust(512, b"\0"),
        header(b"p", b"00000000013\0", b"x") + b"-9 path=x\n".ljust(512, b"\0"),
        header(b"p", b"00000000014\0", b"x") + b"12 size=-99\n".ljust(512, b"\0") + header(b"a", b"0\0"),
        header(b"p", b"77777777777\0", b"x"),
        header(b"p", b"77777777777\0", b"L"),
        header(b"p", b"77777777777\0", b"g"),
    ],
)
def test_a_hostile_tar_ends(hostile: bytes) -> None:
    data = header(b"0.txt", b"00000000000\0") + hostile + bytes(1024)
    found = []
    with pytest.raises(FormatError):
        for member in tar_members(io.BytesIO(data), len(data)):
            found.append(member)
    assert found == [("0.txt", 512, 0)]


@pytest.mark.parametrize("format_", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_members_are_those_that_gnu_tar_and_python_see(tmp_path: Path, format_: str) -> None:
    long = "d" * 60 + "/" + "e" * 30 if format_ in ("ustar", "v7", "oldgnu") else "d" * 150 + "/" + "é" * 90
    for name in ("k0.txt", f"{long}/k1.txt"[-95:] if format_ == "v7" else f"{long}/k1.txt"):
        path = tmp_path / "in" / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "in" / "link").symlink_to("k0.txt")
    subprocess.run(
        ["tar", f"--format={format_}", "-cf", tmp_path / "x.tar", "-C", tmp_path / "in", "."], check=True
    )
    with tarfile.open(tmp_path / "x.tar") as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    with (tmp_path / "x.tar").open("rb") as file:
        assert list(tar_members(file, (tmp_path / "x.tar").stat().st_size)) == expected
    assert len(expected) == 2
    shutil.rmtree(tmp_path / "in")


def test_a_tar_without_an_end_says_so(good: Path) -> None:
    data = (good / "a.tar").read_bytes()[: 6 * 2560]
    with pytest.raises(TarCut, match="without the end of a tar"):
        list(tar_members(io.BytesIO(data), len(data)))
