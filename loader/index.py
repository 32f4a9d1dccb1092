"""Where each member of each sample lies in a tar that has no sidecar: from the tar's own headers.

Such tars are scanned once, header by header, and the result is kept in the cache folder under their path, size and time of
change.
"""

import functools
import hashlib
import logging
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from loader.format import FormatError
from loader.printable import printable
from loader.private_files import make_private_folder, open_private
from loader.sidecar import Table
from loader.tar_headers import tar_members

I64 = npt.NDArray[np.int64]

log = logging.getLogger("loader")

VERSION = 2  # of what is remembered
# WebDataset's rule: the key ends at the first dot of the file name.
SAMPLE = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")


class DoubledMember(FormatError):
    """Two members of one name: which of them is meant, nobody can say."""


@dataclass(frozen=True)
class Scan:
    """What the headers of a tar say. offset, size: of each member by key number; -1 where the sample lacks it."""

    keys: npt.NDArray[np.str_]
    offset: dict[str, I64]
    size: dict[str, I64]

    def table(self, members: Sequence[str], columns: Sequence[str]) -> Table:
        """The samples that have all of `members`, and a caption if that is among the columns; others are not whole, and not there."""
        names = [*members, "txt"] if "caption" in columns else members
        lacking = np.full(len(self.keys), -1)
        places = {name: self.offset.get(name, lacking) for name in names}
        whole = np.all([offset >= 0 for offset in places.values()], axis=0)
        return Table(
            offset={name: offset[whole] for name, offset in places.items()},
            size={name: self.size.get(name, lacking)[whole] for name in names},
            rows=np.flatnonzero(whole),
            keys=self.keys,
        )


def scan(file: BinaryIO, size: int, name: str) -> Scan:
    """Read the headers of a tar. What lies beyond a cut or damage is left out, with a line in the log.

    Raises FormatError for what is no tar, and for a doubled member.
    """
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        for path, offset, length in tar_members(file, size):
            match = SAMPLE.fullmatch(path)
            if not match:
                continue
            members = rows.setdefault(match[1], {})
            extension = match[2].removesuffix(".npy")
            if extension in members:
                raise DoubledMember(f"two members {printable(path)}")
            members[extension] = offset, length
    except DoubledMember:
        raise
    except FormatError as error:
        if not rows:
            raise
        log.warning(
            "%s is cut or damaged: %s; of its samples only those before it are read, %d of them",
            *(printable(name), error, len(rows)),
        )
    names = sorted({name for members in rows.values() for name in members})
    places = {
        n: np.array([m.get(n, (-1, -1)) for m in rows.values()], np.int64).reshape(-1, 2) for n in names
    }
    keys = np.array(list(rows), np.str_)
    return Scan(keys, {n: p[:, 0] for n, p in places.items()}, {n: p[:, 1] for n, p in places.items()})


def scan_cached(path: Path, cache: Path) -> Scan:
    """`scan`, remembered in the cache folder for as long as the tar's size and time of change stay.

    What is remembered is read only if it is whole; where nothing can be remembered, the tar is scanned at every start.
    """
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {VERSION}".encode()
    kept = cache / "index" / f"{hashlib.sha256(identity).hexdigest()}.npz"
    if (known := _remembered(kept, status.st_size)) is not None:
        return known
    try:
        with path.open("rb") as file:
            found = scan(file, status.st_size, str(path))
    except FormatError as error:
        raise FormatError(f"{printable(path)}: {error}") from error
    try:
        _remember(kept, found)
    except OSError as error:
        _told_once(
            f"{cache}: {error}; tars without a sidecar are scanned again at every start. Set cache_dir"
        )
    return found


def _remembered(kept: Path, size: int) -> Scan | None:
    try:
        with open(open_private(kept), "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None  # another user's word on where members lie
            names = [name.removeprefix("offset ") for name in arrays.files if name.startswith("offset ")]
            found = Scan(
                arrays["keys"],
                {n: arrays[f"offset {n}"] for n in names},
                {n: arrays[f"size {n}"] for n in names},
            )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
        log.warning("%s: %s; scanning the tar again", printable(kept), printable(error))
        return None
    columns = [*found.offset.values(), *found.size.values()]
    whole = all(
        c.dtype == np.int64 and c.shape == found.keys.shape and c.max(initial=0) <= size for c in columns
    )
    return found if whole and found.keys.dtype.kind == "U" and found.keys.ndim == 1 else None


def _remember(kept: Path, found: Scan) -> None:
    arrays: dict[str, Any] = {"keys": found.keys}
    arrays |= {f"offset {n}": values for n, values in found.offset.items()}
    arrays |= {f"size {n}": values for n, values in found.size.items()}
    make_private_folder(kept.parent)
    descriptor, temporary = tempfile.mkstemp(suffix=".tmp", dir=kept.parent)
    try:
        with open(descriptor, "wb") as out:
            np.savez(out, **arrays)
        os.replace(temporary, kept)
    except BaseException:
        os.unlink(temporary)
        raise


@functools.cache
def _told_once(message: str) -> None:
    log.warning("%s", printable(message))
