"""Files that another machine has removed: NFS answers ESTALE where a local disk says ENOENT, and nobody dies of it."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.shards.retry import end_retry
from precompute.shards.tar_writer import TarWriter
from precompute.shards.unit_writer import WORK, UnitWriter, revoke, sweep, write_shared
from tests.precompute.runtime.test_pipeline_faults import Made, encoder, tars, work  # noqa: F401  fixtures


def stale(*_: object, **__: object) -> Any:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def once(fault: Callable[..., Any], call: Callable[..., Any]) -> Callable[..., Any]:
    calls = iter([fault])
    return lambda *arguments, **options: next(calls, call)(*arguments, **options)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE])
def test_owner_that_wakes_to_find_its_files_gone_drops_the_unit_and_goes_on(
    work: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    code: int,
) -> None:
    put, calls = TarWriter._put, iter(range(1000))

    def hindered(self: TarWriter, data: bytes) -> None:
        if "train-00000.1-" in str(self.path) and next(calls) >= 8:
            (tmp_path / "out" / WORK / "train-00000.lease-2").write_text("{}")  # taken over
            raise OSError(code, os.strerror(code))
        put(self, data)

    monkeypatch.setattr(TarWriter, "_put", hindered)
    with caplog.at_level(logging.WARNING):
        work(Made(units=2), timeout=1.0)
    assert "unit 0: another process took over" in caplog.text
    assert {name[:11] for name in tars(tmp_path / "out")} == {"train-00000", "train-00001"}


def test_owner_whose_files_are_gone_while_its_lease_is_good_says_so(
    work: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TarWriter, "_put", stale)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        work(Made(units=2))


def test_leases_that_vanish_while_they_are_looked_at_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(tmp_path, "train", [Unit(0, 0)])
    (tmp_path / WORK / "train-00000.lease-1").write_text("{}")
    monkeypatch.setattr(Path, "stat", once(stale, Path.stat))
    lease = leases.claim()
    assert lease is not None and lease.turn == 2
    monkeypatch.setattr(Path, "unlink", stale)
    leases.close()


def test_folder_of_leases_that_vanishes_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leases = Leases(tmp_path, "train", [Unit(0, 0)])
    monkeypatch.setattr(os, "open", once(stale, os.open))
    assert leases.claim() is None
    assert leases.claim() is not None
    leases.close()


def test_temporary_files_that_vanish_while_they_are_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / WORK).mkdir()
    for name in ("tmp-ab", "train-00000.lease-1", "retry-train.bad_archive"):
        (tmp_path / WORK / name).touch()
    (tmp_path / WORK / "train-00000.1-ab").mkdir()
    for call in ("unlink", "rename", "is_dir"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, call, stale)
            revoke(tmp_path, "train-00000", 2)
            sweep(tmp_path, {"train-00000"})
            end_retry(tmp_path, "train")
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", stale)
        revoke(tmp_path, "train-00000", 2)
        sweep(tmp_path, {"train-00000"})


def test_shared_file_is_written_again_where_its_temporary_one_was_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", once(stale, Path.replace))
    write_shared(tmp_path, "manifest.json", b"{}")
    assert (tmp_path / "manifest.json").read_bytes() == b"{}"
    writer = UnitWriter(tmp_path, "train", 0, ["txt"], 10, "1-ab")
    monkeypatch.setattr(Path, "rename", stale)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        writer.commit({}, [], {}, {})
    writer.discard()
    assert not list(tmp_path.glob("train-*"))
