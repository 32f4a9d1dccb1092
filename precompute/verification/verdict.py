"""`.verified.json`: what the last verify of a folder said, and of which manifest, for the head of the report."""

import contextlib
import datetime
import hashlib
import json
import shlex
from pathlib import Path

from loader.format import MANIFEST
from precompute.commands import PROGRAM
from precompute.shards.output_folder import write_file

VERDICT = ".verified.json"


def keep_verdict(folder: Path, verdict: str, mode: str) -> None:
    """Note the verdict beside the shards. Where that cannot be written, it is not."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    note = {"time": now, "verdict": verdict, "mode": mode, "manifest": _manifest(folder)}
    with contextlib.suppress(OSError):
        write_file(folder / VERDICT, json.dumps(note).encode())


def last_verdict(folder: Path) -> str:
    """`whole, on 2026-11-26 10:00 UTC (every byte)`, or that nobody has looked since the shards changed."""
    # The report is published: it names no path of this machine.
    cure = f"`{PROGRAM} verify {shlex.quote(folder.resolve().name)}` proves it"
    try:
        note = json.loads((folder / VERDICT).read_bytes())
        said = f"{note['verdict']}, on {note['time']} ({note['mode']})"
        current = note["manifest"] == _manifest(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return f"not verified yet: {cure}"
    return f"verified: {said}" if current else f"verified before the shards changed: {said}; {cure} anew"


def _manifest(folder: Path) -> str:
    return (
        hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() if (folder / MANIFEST).exists() else ""
    )
