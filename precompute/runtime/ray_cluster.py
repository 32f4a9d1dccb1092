"""The Ray cluster of a run: the one of RAY_ADDRESS or on this machine, or one that lives as long as the command."""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

import ray

from precompute.errors import UsageError

REACH = 10.0  # seconds to reach RAY_ADDRESS in, where Ray would try for minutes
STORE = 100 << 20  # bytes of shared memory; only numbers go through it


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Ray, connected. Raises UsageError where RAY_ADDRESS cannot be reached."""
    if ray.is_initialized():
        yield
        return
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_SCHEDULER_EVENTS"):
        os.environ.setdefault(name, "0")
    address = os.environ.get("RAY_ADDRESS", "")
    _check_reachable(address)
    try:
        _connect(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        line = next(iter(str(error).splitlines()), "")
        raise UsageError(f"RAY_ADDRESS={address}: {line} Is it the address that `ray start` told?") from error
    try:
        yield
    finally:
        ray.shutdown()


def num_gpus() -> int:
    """GPUs of the nodes that are alive."""
    return sum(int(node["Resources"].get("GPU", 0)) for node in _nodes() if node["Alive"])


def threads_here(gpu: bool) -> int:
    """A worker's share of the cores of its node, where one worker a GPU is at work, or one a core."""
    here = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in _nodes() if node["NodeID"] == here)
    return max(1, int(resources.get("CPU", 1)) // max(1, int(resources.get("GPU", 1)))) if gpu else 1


def _nodes() -> list[dict[str, Any]]:
    return ray.nodes()  # type: ignore[no-untyped-call]


def _connect(address: str) -> None:
    if address != "local":
        with contextlib.suppress(*([] if address else [ConnectionError])):
            ray.init(address=address or "auto", logging_level=logging.ERROR)
            return
    ray.init(address="local", include_dashboard=False, object_store_memory=STORE, logging_level=logging.ERROR)


def _check_reachable(address: str) -> None:
    match = re.fullmatch(r"(ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)", address)
    if match is None:
        return
    try:
        socket.create_connection((match["host"], int(match["port"])), REACH).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"RAY_ADDRESS={address}: cannot be reached ({error}); give a running cluster's, or unset it to run on this machine"
        ) from error
