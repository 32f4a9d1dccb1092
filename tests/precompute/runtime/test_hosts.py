"""Hosts of a network of their own, a store on one of them, and a cable that is cut for half a minute while they work.

LATENTMILL_RAY=1 runs them: minutes, as root, on Linux.
"""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from PIL import Image

from tests.support.hosts import Host, Hosts, can_have_hosts
from tests.support.launching import ROOT, SMALL_TOY, environment
from tests.support.raw.archive import write_tar
from tests.support.ray_cluster import ENVIRONMENT

UNITS, ROWS = 40, 6
CUT = 30.0  # seconds
KEYS = {"access_key_id": "made-up", "secret_access_key": "made-up", "region": "us-east-1"}

pytestmark = [
    pytest.mark.skipif("LATENTMILL_RAY" not in os.environ, reason="takes minutes: LATENTMILL_RAY=1"),
    pytest.mark.skipif(not can_have_hosts(), reason="may not make network namespaces"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of a picture that takes a while to decode."""
    folder, png = tmp_path_factory.mktemp("raw"), io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((3000, 3000)).save(png, "PNG", compress_level=1)
    for unit in range(UNITS):
        keys = [f"{unit:03d}{row:03d}" for row in range(ROWS)]
        write_tar(
            folder / f"{unit:05d}.tar",
            [
                member
                for key in keys
                for member in ((f"{key}.png", png.getvalue()), (f"{key}.txt", key.encode()))
            ],
        )
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> dict[str, bytes]:
    """What one plain process makes of it in a folder."""
    output = tmp_path_factory.mktemp("plain")
    command = [sys.executable, "precompute/run.py", *arguments(data, str(output))]
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True, timeout=300)
    return {path.name: path.read_bytes() for path in output.iterdir() if path.is_file()}


class Store:
    """A server of moto on a host, and a client of it from outside."""

    def __init__(self, host: Host) -> None:
        self.endpoint = f"http://{host.address}:5000"
        host.start(sys.executable, "-m", "moto.server", "-H", host.address, "-p", "5000")
        self._client = boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1",
            aws_access_key_id="looker", aws_secret_access_key="on",
        )  # fmt: skip
        until(lambda: self._client.create_bucket(Bucket="bucket"))

    @property
    def flags(self) -> list[str]:
        options = {"endpoint": self.endpoint, **KEYS}
        return [flag for name, value in options.items() for flag in ("--store-option", f"{name}={value}")]

    def names(self) -> list[str]:
        return [entry["Key"] for entry in self._client.list_objects_v2(Bucket="bucket").get("Contents", [])]

    def at_work(self) -> set[str]:
        """Hosts that hold leases of units."""
        leases = [name for name in self.names() if name.startswith("out/.work/train-") and ".lease-" in name]
        return {json.loads(self.read(name))["host"] for name in leases}

    def read(self, name: str) -> bytes:
        contents: bytes = self._client.get_object(Bucket="bucket", Key=name)["Body"].read()
        return contents

    def files(self) -> dict[str, bytes]:
        """Contents by name, and nothing else is there."""
        return {name.removeprefix("out/"): self.read(name) for name in self.names()}


class Nodes:
    """A cluster of Ray with its head on a host. environment: of the head."""

    def __init__(self, head: Host, environment: dict[str, str]) -> None:
        self._address = f"{head.address}:6379"
        flags = ("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", "--block")
        head.start("sh", "-c", f"exec {self._start(head, *flags)}", env={**ENVIRONMENT, **environment})

    def join(self, host: Host) -> None:
        """Make a node of a host, and again whenever it ends."""
        start = self._start(host, f"--address={self._address}", "--num-cpus=1", "--block")
        host.start("sh", "-c", f"while sleep 1; do {start}; done", env=ENVIRONMENT)

    def run(self, host: Host, command: list[str]) -> subprocess.Popen[str]:
        """Run a driver on a host that is a node without room for work."""
        start = self._start(host, f"--address={self._address}", "--num-cpus=0")
        script = f"until {start}; do sleep 1; done; exec {shlex.join(command)}"
        env = {**ENVIRONMENT, "RAY_ADDRESS": self._address}
        return host.start("sh", "-c", script, env=env, into=subprocess.PIPE)

    def _start(self, host: Host, *flags: str) -> str:
        ray = str(Path(sys.executable).with_name("ray"))
        return shlex.join(
            [ray, "start", f"--node-ip-address={host.address}", f"--object-store-memory={80 << 20}", *flags]
        )


def until(there: Callable[[], Any], seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(Exception):
            if there():
                return
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.2)


def arguments(data: Path, output: str) -> list[str]:
    return ["builders/webdataset", "--data-dir", str(data), "--output", output, *SMALL_TOY]


def command(data: Path, store: Store, *more: str) -> list[str]:
    run = [sys.executable, "precompute/run.py", *arguments(data, "s3://bucket/out")]
    return [*run, *store.flags, "--lease-timeout", "6", *more]


def check(store: Store, plain: dict[str, bytes]) -> None:
    """Hold a folder against the plain run's: the same files, markers but for their timings, and nothing more."""
    there = store.files()
    assert there.keys() == plain.keys()
    for name, contents in plain.items():
        if name.startswith("train-") and name.endswith(".json"):
            assert {**json.loads(there[name]), "timings": 0} == {**json.loads(contents), "timings": 0}
        else:
            assert there[name] == contents, name


def cut_for_a_while(host: Host) -> None:
    host.cut()
    time.sleep(CUT)
    host.mend()


def finish(process: subprocess.Popen[str]) -> str:
    """What it said until its good end."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_plain_processes_and_a_cut_cable(data: Path, plain: dict[str, bytes]) -> None:
    """One is cut off from the store and from the other, which takes over what it was at."""
    with Hosts(3) as (one, two, place):
        store = Store(place)
        processes = [host.start(*command(data, store), into=subprocess.PIPE) for host in (one, two)]
        until(lambda: store.at_work() == {one.name, two.name})
        cut_for_a_while(one)
        for process in processes:
            finish(process)
        check(store, plain)


@pytest.mark.parametrize("threshold", [None, 5])
def test_ray_and_a_cut_cable(data: Path, plain: dict[str, bytes], threshold: int | None) -> None:
    """Head, two workers, driver and store on hosts of their own; a worker is cut off from all others.

    threshold: of Ray's checks, of 1 to 3 s each, that its node must miss to be taken for dead; it then ends when it is back. By
    default Ray waits for longer than the cable is cut.
    """
    health = {"initial_delay_ms": 0, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": threshold}
    strict = {f"RAY_health_check_{name}": f"{value}" for name, value in health.items()} if threshold else {}
    with Hosts(5) as (head, one, two, driver, place):
        store, nodes = Store(place), Nodes(head, strict)
        nodes.join(one)
        nodes.join(two)
        process = nodes.run(driver, command(data, store, "--engine", "ray", "--ray-workers", "2"))
        until(lambda: store.at_work() == {one.name, two.name})
        cut_for_a_while(one)
        said = finish(process)
        assert f"a worker on {one.name} was lost" in said or not threshold, said
        check(store, plain)
