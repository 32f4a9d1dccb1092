"""Files that another process may have removed. A local disk says ENOENT of them; NFS, where they were open or known, ESTALE."""

import contextlib
import errno
from collections.abc import Iterator


def is_gone(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ESTALE)


@contextlib.contextmanager
def may_be_gone() -> Iterator[None]:
    """Go on after the block where a file was not there (any more)."""
    try:
        yield
    except OSError as error:
        if not is_gone(error):
            raise
