"""Archives out of lists of (name, bytes), in the order given."""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Members = Iterable[tuple[str, bytes]]


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def write_tar(path: Path, members: Members, mode: Any = "w", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("/"):
                info.type, info.name = tarfile.DIRTYPE, name.rstrip("/")
            tar.addfile(info, io.BytesIO(data))
            # Which tarfile keeps for reading; ten million of them fill memory.
            tar.members.clear()  # type: ignore[attr-defined]


def write_tgz(path: Path, members: Members) -> None:
    write_tar(path, members, "w:gz", compresslevel=1)


def write_zip(path: Path, members: Members, compression: int = zipfile.ZIP_STORED) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)  # of a fixed date, so that the bytes are always the same
            archive.writestr(info, data, None if name.endswith("/") else compression)
