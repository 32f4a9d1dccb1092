"""Small Ray clusters on this machine, for commands that find them by RAY_ADDRESS."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = {"num_cpus": 1, "object_store_memory": 80 << 20}
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
os.environ.update(ENVIRONMENT)  # before Ray reads them: no token is written, nobody is told

pytest.importorskip("ray")
from ray.cluster_utils import Cluster as Cluster  # noqa: E402


def while_running(
    process: subprocess.Popen[str], there: Callable[[], object], seconds: float = 200.0
) -> None:
    """Return as soon as `there()` is true; fail where the process ends before."""
    end = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.05)


def markers(folder: Path) -> list[Path]:
    return sorted(folder.glob("train-*.json"))
