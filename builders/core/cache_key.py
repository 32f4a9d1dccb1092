"""What a cache entry is made from, hashed: the files in data_dir and the code. `datasets` itself looks at neither."""

import hashlib
import inspect
import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def folder_fingerprint(folder: str) -> str:
    """Names, sizes and times of all files under the folder, hashed. Links count as what they lead to, folders too."""
    digest, walked = hashlib.sha256(), set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(root)) in walked:  # a link that leads back
            folders.clear()
            continue
        walked.add(real)
        folders.sort()
        for name in sorted(files):
            path = os.path.join(root, name)
            stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link may lead nowhere
            digest.update(f"{os.path.relpath(path, folder)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def code_hash(builder: type) -> str:
    """Changes with any line of this package or of the builder's own file, so that no cache outlives the code that made it."""
    digest = hashlib.sha256()
    for path in sorted({*PACKAGE.rglob("*.py"), Path(inspect.getfile(builder))}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
