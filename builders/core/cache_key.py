"""What a cache entry is made from, hashed: the files in data_dir and the code. `datasets` itself looks at neither."""

import hashlib
import inspect
import os
from pathlib import Path

from builders.core.listing import walk_files

PACKAGE = Path(__file__).resolve().parents[1]


def folder_fingerprint(folder: str) -> str:
    """Names, sizes and times of all files under the folder, hashed. Links count as what they lead to, folders too."""
    digest = hashlib.sha256()
    for name in walk_files(folder):
        path = os.path.join(folder, name)
        stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link may lead nowhere
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def code_hash(builder: type) -> str:
    """Changes with any line of this package or of the builder's own file, so that no cache outlives the code that made it."""
    digest = hashlib.sha256()
    for path in sorted({*PACKAGE.rglob("*.py"), Path(inspect.getfile(builder))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
