"""Who holds a lease: one process of one machine, told from all others, and whether it is still alive."""

import contextlib
import functools
import json
import os
import socket
from pathlib import Path
from typing import Any

import psutil


def this_process() -> dict[str, Any]:
    """What its leases say of it."""
    return {**_machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def parse_owner(data: bytes) -> dict[str, Any]:
    """Who wrote a lease; empty while it is being written, once it is gone, or where it is no lease of ours."""
    try:
        owner = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(owner, dict):
        return {}
    pid, started = owner.get("pid"), owner.get("started")
    if type(pid) is not int or not 0 < pid < 2**31:
        return {}
    if not isinstance(started, (int, float)) or not 0 <= started < 2**63:
        return {}
    texts = (owner.get(name) for name in ("token", "host", "boot", "namespace"))
    return owner if all(isinstance(text, str) for text in texts) else {}


def is_here(owner: dict[str, Any]) -> bool:
    """Whether it is a process of this machine. owner: as `parse_owner` gives it."""
    return {key: owner.get(key) for key in ("host", "boot", "namespace")} == _machine()


def is_dead(owner: dict[str, Any]) -> bool:
    """Certain only of processes of this machine; of others the heartbeat tells. owner: as `parse_owner` gives it."""
    if not is_here(owner):
        return False
    try:
        zombie = psutil.Process(owner["pid"]).status() == psutil.STATUS_ZOMBIE
        return zombie or abs(_started(owner["pid"]) - owner["started"]) > 1  # its number was given to another
    except psutil.NoSuchProcess:
        return True


def _started(pid: int) -> float:
    """When a process started: ticks since boot, which no step of the clock moves, or seconds of the clock where there is
    no /proc. Raises NoSuchProcess."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return float(psutil.Process(pid).create_time())
    return int(stat.rpartition(")")[2].split()[19])  # field 22 of proc(5); the name before may hold anything


@functools.cache
def _machine() -> dict[str, Any]:
    """What tells two machines, boots or containers apart: a pid means something only within one of them."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot": boot, "namespace": namespace}
