"""Files of this user alone, in folders that others may write to as well: no link is followed, nothing is readable by others.

Who else may write to a folder can lay links under names that are known beforehand; what is opened here is a plain file or an error.
"""

import os
import stat
from pathlib import Path

from loader.printable import printable

SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe laid there blocks nobody


class NotPlain(OSError):
    """Something other than a plain file lies under the name of one of ours."""


def make_private_folder(path: Path) -> None:
    """Make the folder, 0700, and what is missing above it, likewise. One that is there stays as it is."""
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a plain file; with O_CREAT it is made 0600. Raises NotPlain, or OSError as the system does."""
    try:
        descriptor = os.open(path, flags | SAFE, 0o600)
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise NotPlain(
                f"{printable(path)} is a link or folder, where a plain file is expected; remove it"
            ) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or (flags & os.O_CREAT and status.st_nlink > 1):
        os.close(descriptor)
        raise NotPlain(f"{printable(path)} is no plain file with one name; remove it")
    return descriptor
