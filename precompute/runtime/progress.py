"""What a person sees of a run: a line before, a bar during, a table after."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from loader.format import Split
from precompute.commands import command
from precompute.encode.devices import processes_here
from precompute.runtime.forecast import Forecast
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


class ProgressBar:
    """One line over the work of all processes: images, the time that is left, the slowest stage, and how this device waits.

    What matters less is left out where the terminal is narrow. rows: of all units, None where that is not known. before: units
    that were finished before, and their rows.
    """

    def __init__(self, leases: Leases, rows: int | None, before: tuple[int, int], shown: bool) -> None:
        self._leases, self._shown, self._last = leases, shown, Stats()
        self._forecast = Forecast(len(leases.units), rows, before, processes_here(), time.monotonic)
        self._due = time.monotonic() + EVERY
        self._line = tqdm(disable=not shown, bar_format="{desc}")

    def on_progress(self, stats: Stats) -> None:
        self._last = stats
        started = time.monotonic()
        if self._shown and stats.rows and started >= self._due:
            self._show()
            self._due = started + max(EVERY, (time.monotonic() - started) / SHARE)

    def end(self, rows: int) -> None:
        """The last line. rows: of the whole split, as its shards have them."""
        if self._shown:
            told = self._told(self._last.rows / self._last.busy) if self._last.rows else []
            self._write([f"{rows:,}/{rows:,} images, 00:00 left", *told])

    def close(self) -> None:
        self._line.close()

    def _show(self) -> None:
        finished = len(self._leases.finished())
        ahead = self._forecast.look(self._last, finished)
        if ahead.total is None:
            parts = [f"{ahead.images:,} images, {finished:,}/{len(self._leases.units):,} units"]
        else:
            total = f"{ahead.total:,}" if ahead.is_exact else f"~{rounded(ahead.total)}"
            left = "?" if ahead.seconds is None else tqdm.format_interval(ahead.seconds)
            parts = [f"{ahead.images:,}/{total} images, {left} left"]
        self._write([*parts, *self._told(ahead.rate)])

    def _told(self, rate: float) -> list[str]:
        last = self._last
        return [last.bottleneck, f"{rate:,.{0 if rate >= 100 else 1}f}/s", f"device waits {last.waited:.0%}"]

    def _write(self, parts: list[str]) -> None:
        width = shutil.get_terminal_size((120, 24)).columns
        while len(line := ", ".join(parts)) >= width and len(parts) > 1:
            parts = parts[:-1]
        self._line.set_description_str(line)


def rounded(count: int) -> str:
    """A number that is only estimated, by its first three digits: `1,234,567` is `1.23M`."""
    return str(tqdm.format_sizeof(count)) if count >= 1000 else str(count)


def summary(output: Path | str, split: Split, new: int | None, stats: Stats, seconds: float) -> str:
    """The table at the end: what the folder or store `output` holds, then this run. new: samples written by it, all processes, None where
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
        lines += [f"  (which, and why: the .parquet beside each tar, or `{command('preview', output)}`)"]
    if new is None:
        done = f"all of it by earlier runs; nothing was left to do (`{command('verify', output)}` proves it whole)"
        return "\n".join([*lines, done])
    lines += [f"{'time':<18}{seconds:>12,.1f} s", f"{'images/s':<18}{new / max(stats.seconds, 1e-9):>14,.1f}"]
    if stats.images:
        lines += [f"{'device waited':<18}{stats.waited:>14.0%}"]
        lines += [f"{'bottleneck':<18}{stats.bottleneck:>14}"]
    return "\n".join(lines)
