"""What a person sees of a run: a line before, a bar during, a table after."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
from tqdm import tqdm

from loader.format import Split
from precompute.commands import command
from precompute.encode.devices import processes_here
from precompute.runtime.leases import Leases
from precompute.runtime.stats import Stats

EVERY = 1.0  # seconds between changes of the bar
SHARE = 0.01  # of the time may go into looking how far the others are: a large folder is slow to list


def default_threads() -> int:
    """The cores that this process may use, divided by the processes of the launch on this machine."""
    cores = (
        len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else os.cpu_count() or 1
    )
    return max(1, cores // processes_here())


@contextlib.contextmanager
def progress_bar(leases: Leases, shown: bool) -> Iterator[Callable[[Stats], None]]:
    """A bar over the units of all processes, with this one's images/s, the share of time its device waited, and its
    slowest stage."""
    due = time.monotonic() + EVERY
    with tqdm(total=len(leases.units), initial=len(leases.finished()), unit="unit", disable=not shown) as bar:

        def on_progress(stats: Stats) -> None:
            nonlocal due
            if shown and time.monotonic() >= due:
                started = time.monotonic()
                bar.n = len(leases.finished())
                due = started + max(EVERY, (time.monotonic() - started) / SHARE)
                bar.set_postfix_str(
                    f"{stats.images:,} images, {stats.images / stats.busy:,.1f} images/s, "
                    f"device waits {stats.waited:.0%}, bottleneck: {stats.bottleneck}"
                )

        yield on_progress
        bar.n = len(leases.finished())
        bar.refresh()


def summary(split: Split, new: int | None, stats: Stats, seconds: float) -> str:
    """The table at the end: what the folder holds, then this run. new: samples written by it, all processes, None where
    it finished no unit; seconds: its wall time."""
    rows: list[tuple[str, Any]] = [("rows read", split.rows), ("written", split.samples)]
    rows += [("rejected", sum(split.rejected.values()))]
    rows += [(f"  {reason}", count) for reason, count in sorted(split.rejected.items())]
    rows += [("left out, no rows", sum(split.left_out.values()))] if split.left_out else []
    rows += [(f"  {reason}", count) for reason, count in sorted(split.left_out.items())]
    lines = [f"{name:<22}{count:>10,}" for name, count in rows]
    if split.rejected:
        lines += [f"  (which, and why: the .parquet beside each tar, or `{command('preview')}`)"]
    if new is None:
        done = f"all of it by earlier runs; nothing was left to do (`{command('verify')}` proves it whole)"
        return "\n".join([*lines, done])
    lines += [f"{'time':<18}{seconds:>12,.1f} s", f"{'images/s':<18}{new / max(stats.seconds, 1e-9):>14,.1f}"]
    if stats.images:
        lines += [f"{'device waited':<18}{stats.waited:>14.0%}"]
        lines += [f"{'bottleneck':<18}{stats.bottleneck:>14}"]
    return "\n".join(lines)
