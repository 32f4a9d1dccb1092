"""`--engine ray` on clusters of this machine: nodes are killed and join, and the bytes are those of a plain run.

The suite has one cluster; LATENTMILL_RAY=1 adds those that take minutes.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from precompute import run
from precompute.runtime import ray_crew
from precompute.runtime.owner import parse_owner
from tests.support.faulty_store import FaultyStore
from tests.support.launching import ROOT, SMALL_TOY, environment, leftovers, run_here, tars
from tests.support.raw.archive import write_tar
from tests.support.ray_cluster import SMALL, Cluster, markers, while_running
from tests.support.worker import TOY

UNITS, ROWS = 12, 5
long = pytest.mark.skipif("LATENTMILL_RAY" not in os.environ, reason="takes minutes: LATENTMILL_RAY=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tars of a picture that takes a while to decode, over and over; the third of each is none."""
    folder, png = tmp_path_factory.mktemp("raw"), io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((2000, 2000)).save(png, "PNG", compress_level=1)
    for unit in range(UNITS):
        members = []
        for row in range(ROWS):
            key, picture = f"{unit:03d}{row:03d}", b"<html>" if row == 2 else png.getvalue()
            members += [(f"{key}.png", picture), (f"{key}.txt", f"caption {row} of {unit}".encode())]
        write_tar(folder / f"{unit:05d}.tar", members)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """What one plain process makes of it."""
    output = tmp_path_factory.mktemp("plain")
    run.run(run.Config("builders/webdataset", output, data_dir=data, batch_size=3, **TOY))
    return output


def arguments(data: Path, output: Path | str) -> list[str]:
    return ["builders/webdataset", "--data-dir", str(data), "--output", str(output), *SMALL_TOY]


def ray_arguments(data: Path, output: Path | str, workers: int) -> list[str]:
    return [*arguments(data, output), "--engine", "ray", "--ray-workers", str(workers)]


def check(output: Path, plain: Path) -> None:
    """It is as if one plain process had been at it, undisturbed."""
    assert tars(output) == tars(plain)
    for name in [*(path.name for path in plain.glob("*.parquet")), "manifest.json", "null_caption.npz"]:
        assert (output / name).read_bytes() == (plain / name).read_bytes(), name
    assert len(markers(output)) == UNITS and not leftovers(output)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room for work; tests add nodes to it."""
    made = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()


@contextlib.contextmanager
def started(
    data: Path, output: Path | str, address: str, workers: int, *flags: str
) -> Iterator[subprocess.Popen[str]]:
    """The command, as a user starts it."""
    process = subprocess.Popen(
        [sys.executable, "precompute/run.py", *ray_arguments(data, output, workers), *flags],
        cwd=ROOT,
        env={**environment(), "RAY_ADDRESS": address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def at_work(output: Path) -> int:
    """Workers that hold leases."""
    tokens = set()
    for path in output.glob(".work/*.lease-*"):
        with contextlib.suppress(FileNotFoundError):
            tokens.add(parse_owner(path.read_bytes()).get("token"))
    return len(tokens - {None})


def finish(process: subprocess.Popen[str]) -> str:
    """What the command said until its good end."""
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path
) -> None:
    monkeypatch.setitem(sys.modules, "precompute.runtime.ray_cluster", None)
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, capsys, *ray_arguments(data, tmp_path, 1))
    assert stopped.value.code == 2
    assert 'pip install "latentmill[ray]"' in capsys.readouterr().err


def test_address_without_a_cluster_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path
) -> None:
    """Ray itself tries for minutes."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(SystemExit) as stopped:
        run_here(monkeypatch, capsys, *ray_arguments(data, tmp_path, 1))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: RAY_ADDRESS=127.0.0.1:9: cannot be reached")
    assert len(error.splitlines()) == 1


def test_cluster_without_room_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    data: Path,
    cluster: Cluster,
) -> None:
    monkeypatch.setattr(ray_crew, "PATIENCE", 1.0)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for flags, message in (
        ([], "the cluster has no GPU"),
        (["--ray-workers", "1"], "no CPU of the cluster was free"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_here(monkeypatch, capsys, *arguments(data, tmp_path), "--engine", "ray", *flags)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("resources", "flags"), [({}, ("--ray-workers", "1")), ({"num_gpus": 1}, ())], ids=["told", "one a GPU"]
)
def test_same_bytes_as_a_plain_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    data: Path,
    plain: Path,
    cluster: Cluster,
    resources: dict[str, int],
    flags: tuple[str, ...],
) -> None:
    """Where there is no GPU, Ray is told of one all the same; the worker that gets it encodes on the CPU."""
    node = cluster.add_node(**SMALL, **resources)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    said = run_here(monkeypatch, capsys, *arguments(data, tmp_path), "--engine", "ray", *flags)
    check(tmp_path, plain)
    assert f"0 of {UNITS} units finished before" in said and "device waited" in said
    cluster.remove_node(node)


@long
def test_a_node_is_killed_and_one_joins(tmp_path: Path, data: Path, plain: Path, cluster: Cluster) -> None:
    """There were two, and it is at its units."""
    doomed, _ = [cluster.add_node(**SMALL) for _ in range(2)]
    with started(data, tmp_path, cluster.address, 2) as process:
        while_running(process, lambda: at_work(tmp_path) == 2)
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(**SMALL)
        said = finish(process)
    check(tmp_path, plain)
    assert "units are put back" in said, said
    assert f"0 of {UNITS} units finished before" in said and "device waited" in said


@long
def test_into_an_object_store(store: FaultyStore, data: Path, plain: Path, cluster: Cluster) -> None:
    """The workers write there themselves; the driver is told what is finished."""
    cluster.add_node(**SMALL)
    flags = [flag for option in store.options for flag in ("--store-option", option)]
    with started(data, "s3://bucket/out", cluster.address, 1, *flags) as process:
        finish(process)
    there = store.objects("out")
    expected = {path.name: path.read_bytes() for path in plain.iterdir() if path.is_file()}
    assert there.keys() == expected.keys()
    for name in expected:
        if name.startswith("train-") and name.endswith(".json"):
            assert {**json.loads(there[name]), "timings": 0} == {**json.loads(expected[name]), "timings": 0}
        else:
            assert there[name] == expected[name], name


@long
def test_the_driver_is_killed_too_and_started_again(
    tmp_path: Path, data: Path, plain: Path, cluster: Cluster
) -> None:
    """One of three nodes is killed, one joins, and then the driver is killed while all are at work."""
    doomed, *_ = [cluster.add_node(**SMALL) for _ in range(3)]
    with started(data, tmp_path, cluster.address, 3) as process:
        while_running(process, lambda: at_work(tmp_path) >= 2)
        cluster.remove_node(doomed, allow_graceful=False)
        cluster.add_node(**SMALL)
        while_running(process, lambda: len(markers(tmp_path)) >= 2)
        process.kill()
    done = len(markers(tmp_path))
    assert done < UNITS
    with started(data, tmp_path, cluster.address, 3) as process:
        said = finish(process)
    check(tmp_path, plain)
    assert f"0 of {UNITS} units finished before" not in said


@long
def test_one_machine_without_a_cluster(tmp_path: Path, data: Path, plain: Path) -> None:
    """A cluster of its own, which ends with the command."""
    with started(data, tmp_path, "local", 1) as process:
        finish(process)
    check(tmp_path, plain)


@long
def test_terminated_driver_gives_the_work_back(tmp_path: Path, data: Path, cluster: Cluster) -> None:
    cluster.add_node(**SMALL)
    with started(data, tmp_path, cluster.address, 1) as process:
        while_running(process, lambda: markers(tmp_path))
        process.terminate()
        process.communicate(timeout=100)
        assert process.returncode == 128 + 15
    assert len(markers(tmp_path)) < UNITS and not list(tmp_path.glob(".work/*"))
