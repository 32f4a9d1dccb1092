"""Machines of a network of their own on this one: network namespaces at a switch, with addresses, names, latency and a cable each.

with Hosts(2) as (one, two):
    process = one.start("python", "-m", "http.server")
    one.cut()                            # nothing of it reaches anybody, nor the other way round

The switch is a thread of this process (tests/support/switch.py). When that is killed, the network is gone with it; what ran on the
hosts is ended by whoever makes hosts next.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.support.launching import ROOT, environment
from tests.support.switch import Port, Switch

LATENCY = 0.005  # seconds of each frame
NUMBERS = itertools.count()  # what the kernel deletes is there for a while
NAME = re.compile(r"lm(\d+)x\d+-\d+")
OWN = Path("/tmp/ray")  # each process sees one that is empty, as on a machine of its own
BEGIN = f'hostname "$0" && mount -t tmpfs none {OWN} && exec "$@"'


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def can_have_hosts() -> bool:
    """Whether this process may make namespaces and devices."""
    try:
        with Hosts(1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@dataclass
class Host:
    """name: its host name; port: its place at the switch."""

    name: str
    address: str
    port: Port
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(
        self, *command: str, env: Mapping[str, str] | None = None, into: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """A process that sees this host's network and name. into: PIPE for what it says, errors too."""
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "--mount", "sh", "-c", BEGIN]
        more: dict[str, Any] = {"cwd": ROOT, "text": True, "stdout": into, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(
            [*inside, self.name, *command], env={**environment(), **(env or {})}, **more
        )
        self.processes.append(process)
        return process

    def cut(self) -> None:
        """Lose what is on its way, and all that follows. Nobody is told: the device stays up."""
        self.port.is_cut = True

    def mend(self) -> None:
        self.port.is_cut = False


class Hosts:
    """So many, as a context; nothing of them is left after it, nor of what they started. latency: seconds of each frame."""

    def __init__(self, number: int, latency: float = LATENCY) -> None:
        self._number, self._latency = number, latency
        self._tag = f"lm{os.getpid()}x{next(NUMBERS)}"
        self._hosts: list[Host] = []

    def __enter__(self) -> list[Host]:
        sweep()
        OWN.mkdir(exist_ok=True)
        net = free_net()
        self._switch = Switch(self._latency)
        try:
            self._switch.plug_in(self._tag)
            ip("address", "add", f"{net}.254/24", "dev", self._tag)
            ip("link", "set", self._tag, "up")
            for index in range(self._number):
                self._connect(f"{self._tag}-{index}", net, index)
        except BaseException:
            self.close()
            raise
        return self._hosts

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._switch.close()
        for host in self._hosts:
            remove(host.name)
            for process in host.processes:
                process.kill()
                process.wait()
                if process.stdout:
                    process.stdout.close()

    def _connect(self, name: str, net: str, index: int) -> None:
        port = self._switch.plug_in(f"{self._tag}p{index}")
        ip("netns", "add", name)
        self._hosts.append(Host(name, f"{net}.{index + 1}", port))
        ip("link", "set", f"{self._tag}p{index}", "netns", name, "name", "eth0")
        ip("-n", name, "address", "add", f"{net}.{index + 1}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", name, "link", "set", device, "up")
        ip("-n", name, "route", "add", "default", "via", f"{net}.254")


def free_net() -> str:
    """The first three numbers of addresses that nobody has here."""
    taken = ip("-4", "-o", "address")
    nets = (f"10.{200 + number // 256 % 50}.{number % 256}" for number in itertools.count(os.getpid()))
    return next(net for net in nets if f" {net}." not in taken)


def sweep() -> None:
    """Remove hosts of processes that were killed."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        if (match := NAME.fullmatch(name)) and not psutil.pid_exists(int(match[1])):
            remove(name)


def remove(host: str) -> None:
    """End all that runs on it, what others start meanwhile too."""
    with contextlib.suppress(subprocess.CalledProcessError):
        while pids := [int(pid) for pid in ip("netns", "pids", host).split()]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        ip("netns", "delete", host)
