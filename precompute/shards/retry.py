"""`--retry-rejected`: when a retry began, so that each unit is done again once, whoever joins late or starts anew.

The first process makes the control file `retry-train.bad_archive`, whose time is by the clock of the place, as that of the
markers is: only older ones are reopened. It goes when all units are finished. So an interrupted retry goes on where it
was, and the same command after its end is a new one.
"""

import os
import time
from pathlib import Path

import psutil

from precompute.shards.destination import Destination


def retry_began(output: Destination, reason: str) -> int:
    """When the retry for this reason began, in ns; if none is going on, one begins.

    That is when its first process began: others of the same launch may have been quicker, and be through with the retry.
    """
    name = f"{_prefix(output)}{reason}"
    while True:
        output.create(name, str(int(seconds_lived() * 1e9)).encode())
        age_then, written = output.read(name), output.time(name)
        if written is not None:  # else the retry has just ended
            return written - (int(age_then) if age_then.isdigit() and len(age_then) < 20 else 0)


def end_retry(output: Destination) -> None:
    """End the retry, once all units are finished."""
    for name in output.controls():
        if name.startswith(_prefix(output)):
            output.remove(name)


def seconds_lived() -> float:
    """Say for how many seconds this process has lived, to a hundredth.

    psutil counts from the whole second in which the machine was started: what a run has finished right before this one was
    started would seem to come after its begin.
    """
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - (ticks + 1) / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError):
        return time.time() - psutil.Process().create_time()


def _prefix(output: Destination) -> str:
    return f"retry-{output.split}."
