"""What a cache entry is made from, hashed: the files in data_dir and the code. `datasets` itself looks at neither."""

import hashlib
import inspect
import os


def folder_fingerprint(folder: str) -> str:
    """Names, sizes and times of all files under the folder, hashed."""
    digest = hashlib.sha256()
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            stat = os.lstat(os.path.join(root, name))  # a link may lead nowhere
            digest.update(
                f"{os.path.relpath(root, folder)}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode()
            )
    return digest.hexdigest()[:16]


def code_hash(builder: type) -> str:
    """Changes with any line of this package or of the builder's own file, so that no cache outlives the code that made it."""
    folder = os.path.dirname(os.path.abspath(__file__))
    files = {os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".py")} | {
        inspect.getfile(builder)
    }
    digest = hashlib.sha256()
    for path in sorted(files):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]
