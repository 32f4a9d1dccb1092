"""Processes with `--push-to --delete-pushed --max-disk` are killed at random instants: the Hub gets all, the disk stays small."""

import hashlib
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from precompute.verify import Config as VerifyConfig
from precompute.verify import verify
from tests.precompute.hub.test_push import REPO
from tests.support.disk import Watch
from tests.support.launching import leftovers, tars
from tests.support.loopback_hub import LoopbackHub
from tests.support.processes import finish
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

UNITS, ROWS, PROCESSES, KILLS = 8, 6, 2, 10
SLOW = 0.002  # seconds a write, so that most kills hit a process at work


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for unit in range(UNITS):
        members = [(f"{unit}{row}.jpg", jpeg(unit + row, (256, 256))) for row in range(ROWS)]
        members += [(f"{unit}{row}.txt", f"caption {row} of {unit}".encode()) for row in range(ROWS)]
        write_tar(folder / f"{unit:05d}.tar", sorted(members))
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path, start: Any) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("undisturbed")
    finish(start, output, data)
    return tars(output)


def test_killed_while_they_push(
    hub: LoopbackHub, tmp_path: Path, data: Path, undisturbed: dict[str, bytes], start: Any
) -> None:
    sizes: dict[str, int] = {}
    for name, contents in undisturbed.items():
        sizes[name[:11]] = sizes.get(name[:11], 0) + len(contents)
    unit, output = max(sizes.values()), tmp_path / "out"
    limit = 2.5 * unit
    options = {"hub": hub.url, "push_to": REPO, "delete_pushed": True, "max_disk": limit / 1e9}
    options |= {"slow": SLOW, "timeout": 2.0}
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    random_, killed = random.Random(seed), 0
    watch = Watch(output)
    processes = [start(output, data, **options) for _ in range(PROCESSES)]
    while killed < KILLS and all(process.exitcode is None for process in processes):
        time.sleep(random_.uniform(0.1, 0.8))
        victim = random_.randrange(PROCESSES)
        if processes[victim].is_alive():
            processes[victim].kill()
            killed += 1
            processes[victim] = start(output, data, **options)
    for process in processes:
        process.join(timeout=300)
    most = watch.stop()
    assert {process.exitcode for process in processes} == {0}
    print(f"{killed} kills, {most / unit:.2f} units of disk at most")
    assert most <= limit + PROCESSES * unit, (
        "what each killed process leaves until its unit is taken up again"
    )
    files = hub.repos[REPO].files()
    assert {name: blob.data for name, blob in files.items() if name.endswith(".tar")} == undisturbed
    for marker in output.glob("train-*.json"):
        for shard in json.loads(marker.read_text())["shards"]:
            assert hashlib.sha256(files[f"{shard['name']}.tar"].data).hexdigest() == shard["sha256"]
    assert not tars(output) and not leftovers(output)
    address = f"hf://datasets/{REPO}"
    assert not verify(VerifyConfig(address)).findings
