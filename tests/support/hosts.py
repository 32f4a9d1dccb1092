"""Machines of a network of their own on this one: network namespaces on a bridge, with addresses, names, latency and a cable each.

with Hosts(2) as (one, two):
    process = one.start("python", "-m", "http.server")
    one.cut()                            # nothing of it reaches anybody, nor the other way round
"""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import psutil

from tests.support.launching import ROOT, environment

NET = "10.231.7"
LATENCY = "2ms"  # of each host's own traffic, where the kernel has netem
NUMBERS = itertools.count()  # what the kernel deletes is there for a while
RENAMED = 'hostname "$0" && exec "$@"'


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def can_have_hosts() -> bool:
    """Whether this process may make namespaces and bridges."""
    try:
        with Hosts(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@dataclass
class Host:
    """name: its host name; port: the bridge's end of its cable."""

    name: str
    port: str
    address: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, *command: str, env: Mapping[str, str] | None = None, into: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """A process that sees this host's network and name. into: PIPE for what it says, errors too."""
        inside = [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            RENAMED,
            self.name,
            *command,
        ]
        more: dict[str, Any] = {"cwd": ROOT, "text": True, "stdout": into, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(inside, env={**environment(), **(env or {})}, **more)
        self.processes.append(process)
        return process

    def cut(self) -> None:
        ip("link", "set", self.port, "down")

    def mend(self) -> None:
        ip("link", "set", self.port, "up")


class Hosts:
    """So many, as a context; nothing of them is left after it, nor of what they started."""

    def __init__(self, number: int) -> None:
        self._tag = f"lm{os.getpid() % 100_000}x{next(NUMBERS)}"
        self._hosts = [
            Host(f"{self._tag}-{index}", f"{self._tag}p{index}", f"{NET}.{index + 1}")
            for index in range(number)
        ]

    def __enter__(self) -> list[Host]:
        try:
            ip("link", "add", self._tag, "type", "bridge")
            ip("address", "add", f"{NET}.254/24", "dev", self._tag)
            ip("link", "set", self._tag, "up")
            for host in self._hosts:
                self._connect(host)
        except BaseException:
            self.close()
            raise
        return self._hosts

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for process in (process for host in self._hosts for process in host.processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()
        for host in self._hosts:
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self._tag], check=False, capture_output=True)

    def _connect(self, host: Host) -> None:
        ip("netns", "add", host.name)
        ip("link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
        ip("link", "set", host.port, "master", self._tag, "up")
        ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", host.name, "link", "set", device, "up")
        tc = ["tc", "-n", host.name, "qdisc", "add", "dev", "eth0", "root", "netem", "delay", LATENCY]
        # Kernels without netem have none.
        subprocess.run(tc, check=False, capture_output=True)
