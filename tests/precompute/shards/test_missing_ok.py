"""Files that another machine has removed: NFS answers ESTALE where a local disk says ENOENT, and nobody dies of it."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.shards.destination import WORK
from precompute.shards.retry import end_retry
from precompute.shards.tar_writer import TarWriter
from precompute.shards.unit_writer import UnitWriter
from tests.precompute.runtime.test_pipeline_faults import Made, encoder, tars, work  # noqa: F401  fixtures
from tests.support.faulty_folder import CALLS, FaultyFolder, failing


def stale(*_: object, **__: object) -> Any:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE])
def test_owner_that_wakes_to_find_its_files_gone_drops_the_unit_and_goes_on(
    work: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    put, calls = TarWriter.put, iter(range(1000))

    def hindered(self: TarWriter, data: bytes) -> None:
        if "train-00000.1-" in str(self.path) and next(calls) >= 8:
            (tmp_path / "out" / WORK / "train-00000.lease-2").write_text("{}")  # taken over
            raise OSError(code, os.strerror(code))
        put(self, data)

    monkeypatch.setattr(TarWriter, "put", hindered)
    with caplog.at_level(logging.WARNING):
        work(Made(units=2), timeout=1.0)
    assert "unit 0: another process took over" in caplog.text
    assert {name[:11] for name in tars(tmp_path / "out")} == {"train-00000", "train-00001"}


def test_owner_whose_files_are_gone_while_its_lease_is_good_says_so(
    work: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TarWriter, "put", stale)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        work(Made(units=2))


def stale_folder(folder: Path, *calls: str, times: int = 10**9) -> FaultyFolder:
    return FaultyFolder(folder, failing(errno.ESTALE, *calls, times=times))


def test_leases_that_vanish_while_they_are_looked_at_are_free(tmp_path: Path) -> None:
    folder = stale_folder(tmp_path, "stat", times=1)
    leases = Leases(folder, [Unit(0, 0)])
    folder.create("train-00000.lease-1", b"{}")
    lease = leases.claim()
    assert lease is not None and lease.turn == 2
    folder.before = failing(errno.ESTALE, "unlink", "stat")
    leases.close()


def test_folder_of_leases_that_vanishes_is_made_anew(tmp_path: Path) -> None:
    leases = Leases(stale_folder(tmp_path, "write", times=1), [Unit(0, 0)])
    assert leases.claim() is not None
    leases.close()


@pytest.mark.parametrize("call", CALLS)
def test_temporary_files_that_vanish_while_they_are_cleared_away(tmp_path: Path, call: str) -> None:
    (tmp_path / WORK).mkdir()
    for name in ("tmp-ab", "train-00000.lease-1", "retry-train.bad_archive"):
        (tmp_path / WORK / name).touch()
    (tmp_path / WORK / "train-00000.1-ab").mkdir()
    (tmp_path / "train-00000.json").touch()
    folder = stale_folder(tmp_path, call)
    folder.revoke("train-00000", 2)
    folder.close(sweep=True)
    end_retry(folder)


def test_shared_file_is_written_again_where_its_temporary_one_was_swept_away(tmp_path: Path) -> None:
    stale_folder(tmp_path, "rename", times=1).put("manifest.json", b"{}")
    assert (tmp_path / "manifest.json").read_bytes() == b"{}"
    writer = UnitWriter(stale_folder(tmp_path, "rename"), 0, ["txt"], 10, "1-ab")
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        writer.commit({}, [], {}, {})
    writer.discard()
    assert not list(tmp_path.glob("train-*"))
