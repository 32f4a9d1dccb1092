"""`--retry-rejected`: when a retry began, so that each unit is done again once, whoever joins late or starts anew.

The first process makes `OUT/.work/retry-train.bad_archive`, whose time is by the clock of the folder, as that of the
markers is: only older ones are reopened. It goes when all units are finished. So an interrupted retry goes on where it
was, and the same command after its end is a new one.
"""

import os
import time
from pathlib import Path

import psutil

from precompute.shards.missing_ok import is_gone, may_be_gone
from precompute.shards.unit_writer import WORK, in_work


def retry_began(output: Path, split: str, reason: str) -> int:
    """When the retry for this reason began, in ns; if none is going on, one begins."""
    path = output / WORK / f"retry-{split}.{reason}"
    while True:
        path.parent.mkdir(exist_ok=True)
        try:
            with open(path, "xb"):
                _set_back(path)
        except FileExistsError:
            pass
        except OSError as error:
            if not is_gone(error):
                raise
            continue  # a process that was through has removed the empty folder
        try:
            return path.stat().st_mtime_ns
        except OSError as error:
            if not is_gone(error):
                raise  # else the retry has just ended


def end_retry(output: Path, split: str) -> None:
    """Once all units are finished."""
    for path in in_work(output):
        if path.name.startswith(f"retry-{split}."):
            with may_be_gone():
                path.unlink()


def _set_back(path: Path) -> None:
    """To when this process began: others of the same launch may have been quicker, and be through with the retry."""
    age = time.time() - psutil.Process().create_time()
    began = path.stat().st_mtime_ns - int(age * 1e9)
    os.utime(path, ns=(began, began))
