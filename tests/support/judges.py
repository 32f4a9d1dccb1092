"""What lies in a folder, an archive or a picture, as programs say that are not ours: GNU tar, zipinfo, find, ImageMagick, Python's own."""

import contextlib
import functools
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

__all__ = [
    "arrays_by_numpy",
    "files_by_zipfile",
    "imagemagick",
    "listed_by_find",
    "members_by_others",
    "pack_by_tar",
    "picture_by_imagemagick",
    "samples_by_tarfile",
]

_ON_WHITE = ("-background", "white", "-alpha", "remove", "-colorspace", "sRGB")


def listed_by_find(root: Path) -> set[str]:
    """All files under a folder, links followed, relative to it."""
    listed = _output("find", "-L", str(root), "-type", "f", "-printf", "%P\\0")
    return {os.fsdecode(name) for name in listed.split(b"\0") if name}


def members_by_others(archive: Path) -> list[str]:
    """The names of an archive's files, in order, folders left out; of a tar that is cut short those before the cut."""
    if archive.read_bytes()[:2] == b"PK":
        listed = _output("zipinfo", "-1", str(archive))
    else:
        listed = _output("tar", "--quoting-style=literal", "-tf", str(archive))
    names = [os.fsdecode(line).removeprefix("./") for line in listed.splitlines()]
    return [name for name in names if name and not name.endswith("/")]


def files_by_zipfile(data: bytes, limit: int) -> list[tuple[str, set[bytes]]]:
    """The name of each file, and the contents that may come of it: what zipfile reads.

    Nothing where it refuses the file for its names or its checksum, and also nothing where a size is absurd, over `limit` for example, of
    which zipfile reads some. What it refuses for another reason is not among them.
    """
    found: list[tuple[str, set[bytes]]] = []
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            with contextlib.suppress(Exception):  # it raises a dozen kinds on damage
                is_absurd = info.compress_size > len(data) or info.file_size > limit
                contents = {_content_by_zipfile(archive, info), *([b""] if is_absurd else [])}
                if not info.filename.endswith("/"):
                    found.append((info.filename.removeprefix("./"), contents))
    return found


def _content_by_zipfile(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except zipfile.BadZipFile as error:
        if any(said in str(error) for said in ("Bad CRC", "and header")):
            return b""
        raise


def samples_by_tarfile(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> contents, in the order of the shards and of their members."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                stream = tar.extractfile(member)
                assert stream is not None and extension not in found.setdefault(key, {})
                found[key][extension] = stream.read()
    return found


def arrays_by_numpy(folder: Path) -> dict[str, dict[str, Any]]:
    """The same, with what numpy reads of each `.npy`."""
    return {
        key: {
            name: np.load(io.BytesIO(data)) if name.endswith(".npy") else data
            for name, data in members.items()
        }
        for key, members in samples_by_tarfile(folder).items()
    }


def pack_by_tar(archive: Path, folder: Path, *options: str) -> None:
    _output("tar", *options, "--sort=name", "-cf", str(archive), "-C", str(folder), ".")


def picture_by_imagemagick(data: bytes) -> bytes | None:
    """The first frame as ImageMagick reads it, upright 8-bit RGB in rows, transparency on white; None where it reads nothing or complains."""
    done = subprocess.run(
        [imagemagick(), "-[0]", "-auto-orient", *_ON_WHITE, "-depth", "8", "rgb:-"],
        input=data,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return None if done.returncode or done.stderr else done.stdout


@functools.cache
def _imagemagick() -> str | None:
    for folder in os.get_exec_path():
        for name in ("magick", "convert"):
            path = shutil.which(name, path=folder)
            if (
                path
                and b"ImageMagick"
                in subprocess.run([path, "-version"], capture_output=True, check=False).stdout
            ):
                return path
    return None


def imagemagick() -> str:
    """Its program, among others of that name. Skips the test where there is none."""
    found = _imagemagick()
    if found is None:
        pytest.skip("needs ImageMagick")
    return found


def _output(name: str, *arguments: str) -> bytes:
    return subprocess.run([_program(name), *arguments], capture_output=True, check=False, timeout=60).stdout


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found
