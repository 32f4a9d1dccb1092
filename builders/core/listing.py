"""The files under a folder, links to folders followed: what the builders read and what a cache entry is made from is one list."""

import os
from collections.abc import Iterator


def walk_files(root: str) -> Iterator[str]:
    """Paths of all files relative to the root, with `/`, in order, hidden ones too. A link that leads back to where it lies is passed."""
    yield from _walk(root, "", (os.path.realpath(root),))


def _walk(root: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    folders = []
    with os.scandir(os.path.join(root, prefix)) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            folders.append(entry.name)
        else:
            yield prefix + entry.name
    for name in folders:
        real = os.path.realpath(os.path.join(root, prefix, name))
        if real not in above:
            yield from _walk(root, f"{prefix}{name}/", (*above, real))
