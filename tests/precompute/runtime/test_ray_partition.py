"""Ray's nodes in network namespaces with addresses and latency of their own, and a cable that is cut for half a minute.

Wants root, `ip` and `tc`; takes minutes: LATENTMILL_RAY=1.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.precompute.runtime.test_ray import UNITS, at_work, check, data, plain, ray_arguments  # noqa: F401
from tests.support.launching import ROOT, environment
from tests.support.ray_cluster import markers, while_running
from tests.support.waiting import wait_until

NAMES = ("lmhead", "lmone", "lmtwo")
BRIDGE, NET = "lmbridge", "10.213.7"
PARTITION = 30.0
RAY = [sys.executable, "-m", "ray.scripts.scripts"]

pytestmark = [
    pytest.mark.skipif("LATENTMILL_RAY" not in os.environ, reason="takes minutes: LATENTMILL_RAY=1"),
    pytest.mark.skipif(
        os.name != "posix" or os.getuid() != 0 or not all(map(shutil.which, ("ip", "tc"))),
        reason="wants root, ip and tc",
    ),
]


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def address(name: str) -> str:
    return f"{NET}.{1 + NAMES.index(name)}"


@pytest.fixture
def hosts() -> Iterator[None]:
    """Three namespaces on a bridge, 5 ms apart."""
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for name in NAMES:
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{address(name)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            delay = ["tc", "qdisc", "add", "dev", name, "root", "netem", "delay", "5ms"]
            if subprocess.run(delay, capture_output=True, check=False).returncode:
                print("no netem here: without latency")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


def wait_for_head() -> None:
    """As `ray start` of the other nodes does not for long."""
    look = f"import socket; socket.create_connection(({address('lmhead')!r}, 6379), 3)"
    command = ["ip", "netns", "exec", "lmone", sys.executable, "-c", look]
    wait_until(lambda: not subprocess.run(command, capture_output=True, check=False).returncode)


@contextlib.contextmanager
def node(name: str, cpus: int, *arguments: str) -> Iterator[None]:
    """`ray start` in a namespace, in the foreground."""
    process = subprocess.Popen(
        [
            *("ip", "netns", "exec", name, *RAY, "start", "--block", f"--node-ip-address={address(name)}"),
            *(
                f"--num-cpus={cpus}",
                f"--object-store-memory={80 << 20}",
                "--include-dashboard=false",
                *arguments,
            ),
        ],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def test_a_node_is_out_of_reach_for_half_a_minute(
    hosts: None,
    tmp_path: Path,
    data: Path,  # noqa: F811
    plain: Path,  # noqa: F811
) -> None:
    """While it is at its units: it may finish what it has, or find that it was taken."""
    head = f"{address('lmhead')}:6379"
    with contextlib.ExitStack() as nodes:
        nodes.enter_context(node("lmhead", 0, "--head", "--port=6379", "--include-dashboard=false"))
        wait_for_head()
        for name in ("lmone", "lmtwo"):
            nodes.enter_context(node(name, 1, f"--address={head}"))
        process = subprocess.Popen(
            [
                *("ip", "netns", "exec", "lmhead", sys.executable, "precompute/run.py"),
                *ray_arguments(data, tmp_path, 2),
            ],
            cwd=ROOT,
            env={**environment(), "RAY_ADDRESS": head},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            while_running(process, lambda: at_work(tmp_path) == 2)
            ip("link", "set", "lmtwo", "down")
            time.sleep(PARTITION)
            ip("link", "set", "lmtwo", "up")
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode == 0, said
    check(tmp_path, plain)
    assert len(markers(tmp_path)) == UNITS
