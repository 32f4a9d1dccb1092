"""The files under a folder, links to folders followed: what the builders read and what a cache entry is made from is one list."""

import os
from collections.abc import Iterator


def walk_files(root: str) -> Iterator[str]:
    """Paths of all files relative to the root, with `/`, in order, hidden ones and links to nowhere too.

    Passed are links that lead back to where they lie, and pipes, sockets and devices, which are no files: whoever opened a pipe would
    wait for ever.
    """
    yield from _walk(root, "", (os.path.realpath(root),))


def _walk(root: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
    folders = []
    with os.scandir(os.path.join(root, prefix)) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        is_link, path = entry.is_symlink(), entry.path
        if os.path.isdir(path) if is_link else entry.is_dir():
            folders.append(entry.name)
        elif (os.path.isfile(path) or not os.path.exists(path)) if is_link else entry.is_file():
            yield prefix + entry.name
    for name in folders:
        real = os.path.realpath(os.path.join(root, prefix, name))
        if real not in above:
            yield from _walk(root, f"{prefix}{name}/", (*above, real))
