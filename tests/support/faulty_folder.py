"""An output folder whose disk fails when it is told to: full, or a server's files gone under one's hands."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from precompute.shards.output_folder import OutputFolder

CALLS = ("write", "rename", "unlink", "stat", "list")


class FaultyFolder(OutputFolder):
    """before: called before each call to the disk with its name, of CALLS, and the path; what it raises, the call raises."""

    def __init__(self, path: Path, before: Callable[[str, Path], None], split: str = "train") -> None:
        super().__init__(path, split)
        self.before = before

    def disk_write(self, path: Path, data: bytes) -> None:
        self.before("write", path)
        super().disk_write(path, data)

    def disk_rename(self, path: Path, to: Path) -> None:
        self.before("rename", path)
        super().disk_rename(path, to)

    def disk_unlink(self, path: Path) -> None:
        self.before("unlink", path)
        super().disk_unlink(path)

    def disk_stat(self, path: Path) -> os.stat_result:
        self.before("stat", path)
        return super().disk_stat(path)

    def disk_list(self, path: Path) -> list[str]:
        self.before("list", path)
        return super().disk_list(path)


def failing(code: int, *calls: str, times: int = 10**9) -> Callable[[str, Path], None]:
    """Fails so many of these calls, with this errno."""
    left = iter(range(times))

    def before(call: str, path: Path) -> None:
        if call in calls and next(left, None) is not None:
            fail(code)

    return before


def fail(code: int = errno.ENOSPC, *_: Any) -> NoReturn:
    raise OSError(code, os.strerror(code))
