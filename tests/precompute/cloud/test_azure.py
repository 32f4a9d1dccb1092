"""`--output az://...` on Azurite: the files of a plain run, whoever is killed, verified and read there."""

import contextlib
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from loader import make_loader
from precompute import choose, run, verify
from precompute.cloud.place import open_output
from precompute.cloud.trouble import StoreError
from tests.precompute.cloud.test_store_runs import check, config
from tests.support.azurite import KEY, Azurite, azurite  # noqa: F401  a fixture
from tests.support.batches import all_same

pytestmark = pytest.mark.skipif(os.name == "nt", reason="flock is POSIX's")


@pytest.fixture
def store(azurite: Azurite) -> Azurite:  # noqa: F811
    return azurite


def batches(path: Path | str, **more: Any) -> list[Any]:
    with contextlib.closing(make_loader(path, 2, extras="key", **more)) as loader:
        return list(loader)


def test_the_files_are_those_of_a_plain_run_and_are_read_there(
    store: Azurite,
    raw: Path,
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = "az://box/plain/run"
    for _ in range(2):
        run.run(config(url, raw, store_option=store.options))
        check(store, "plain/run", plain)
    assert not verify.verify(verify.Config(url, store_option=store.options)).findings
    found = batches(url, storage_options=store.storage_options)
    assert all_same(found, batches(plain)) and len(found) == 12
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path))
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", store.storage_options["connection_string"])
    chosen = choose.count_chosen(choose.Config(url, where="width >= 64"))
    assert chosen == choose.count_chosen(choose.Config(str(plain), where="width >= 64"))
    told = capsys.readouterr()
    assert KEY not in told.out + told.err
    with pytest.raises(StoreError, match="there is no such bucket"):
        run.run(config("az://none/x", raw, store_option=store.options))


def test_a_control_file_has_one_version_however_it_is_asked_for(store: Azurite, tmp_path: Path) -> None:
    """Azure's listings leave out the quotes that its other answers have."""
    place, other = (open_output("az://box/one", "train", tmp_path, store.options) for _ in range(2))
    assert place.create("train-00000.lease-1", b"{}")
    listed = place.versions()["train-00000.lease-1"]
    assert other.version("train-00000.lease-1") == listed
    place.touch("train-00000.lease-1")
    assert place.versions()["train-00000.lease-1"] == other.version("train-00000.lease-1") != listed
    place.remove("train-00000.lease-1")


def test_killed_at_random_instants(store: Azurite, raw: Path, plain: Path, start: Any) -> None:
    chance, url = random.Random(0), "az://box/killed"
    given: dict[str, Any] = {"store_option": store.options, "slow": 0.005, "timeout": 1.0}
    processes = [start(url, raw, **given) for _ in range(2)]
    for _ in range(4):
        time.sleep(chance.uniform(0.2, 1.2))
        victim = chance.randrange(2)
        processes[victim].kill()
        processes[victim] = start(url, raw, **given)
    for process in processes:
        process.join(timeout=200)
    assert {process.exitcode for process in processes} == {0}
    check(store, "killed", plain)
