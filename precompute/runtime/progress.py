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
BAR = "{n_fmt}/{total_fmt} {unit}s, {remaining} left{postfix}"  # what matters most fits into 60 columns
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
    """A bar over the work of all processes, with this one's images/s, its slowest stage and the share of time its device waited.

    Over rows where every unit says how many it has, so that the time that is left shows from the first minute; else over units.
    """
    rows = {unit.index: unit.stop - unit.start for unit in leases.units if unit.stop is not None}
    by_row = len(rows) == len(leases.units) > 0

    def done(images: int) -> int:
        finished = leases.finished()
        return max(sum(rows[unit] for unit in finished), before + images) if by_row else len(finished)

    before = 0
    before = done(0)
    total, unit = (sum(rows.values()), "row") if by_row else (len(leases.units), "unit")
    due, last = time.monotonic() + EVERY, Stats()
    with tqdm(
        total=total, initial=before, unit=unit, disable=not shown, bar_format=BAR, dynamic_ncols=True
    ) as bar:

        def show() -> None:
            bar.n = min(done(last.images), total)
            bar.set_postfix_str(
                f"{last.images:,} images, {last.images / last.busy:,.1f}/s, {last.bottleneck}, device waits {last.waited:.0%}"
            )

        def on_progress(stats: Stats) -> None:
            nonlocal due, last
            last = stats
            if shown and time.monotonic() >= due:
                started = time.monotonic()
                show()
                due = started + max(EVERY, (time.monotonic() - started) / SHARE)

        yield on_progress
        show()


def summary(split: Split, new: int | None, stats: Stats, seconds: float) -> str:
    """The table at the end: what the folder holds, then this run. new: samples written by it, all processes, None where
    it finished no unit; seconds: its wall time."""
    rows: list[tuple[str, Any]] = [("rows read", split.rows), ("written", split.samples)]
    rows += [("rejected", sum(split.rejected.values()))]
    rows += [(f"  {reason}", count) for reason, count in sorted(split.rejected.items())]
    rows += [("left out, no rows", sum(split.left_out.values()))] if split.left_out else []
    rows += [(f"  {reason}", count) for reason, count in sorted(split.left_out.items())]
    if len(split.caption_kinds) > 1:
        rows += [("captions embedded", sum(split.caption_kinds.values()))]
        rows += [(f"  {kind}", count) for kind, count in split.caption_kinds.items()]
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
