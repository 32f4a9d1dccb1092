"""The cache by itself: what goes first, and what is safe on disk before it has a name."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

import loader.trust
from loader.cache import Cache
from tests.support.calls import Calls
from tests.support.waiting import wait_until

CONTENTS = {hashlib.sha256(data).hexdigest(): data for data in (bytes([i]) * 100 for i in range(4))}


def use(cache: Cache, sha256: str) -> None:
    """Open and close it; it is fetched where it is not there."""

    os.close(cache.open(sha256, 100, "made up", lambda part: part.add(CONTENTS[sha256])))


@pytest.mark.parametrize("used", [0, 1, 2])
def test_what_was_used_last_is_removed_last(tmp_path: Path, used: int) -> None:
    cache, (*old, new) = Cache(tmp_path, limit=350), CONTENTS
    for age, sha256 in enumerate(old):
        use(cache, sha256)
        os.utime(tmp_path / "files" / sha256, (age, age))  # the first was used the longest time ago
    use(cache, old[used])
    use(cache, new)
    first = 1 if used == 0 else 0
    assert {path.name for path in (tmp_path / "files").iterdir()} == {*CONTENTS} - {old[first]}


def test_without_word_of_the_machines_start_a_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader.trust, "BOOT_ID", tmp_path / "none")
    calls, (sha256, *_) = Calls(monkeypatch), CONTENTS
    use(Cache(tmp_path, None), sha256)
    assert calls.renamed_into(tmp_path / "files") == [sha256]


def test_what_a_power_cut_met_before_it_lay_on_the_disk_is_hashed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four files: one synced in time, two not, of which one has lost its bytes, and one that is fetched after the start."""
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    monkeypatch.setattr(loader.trust, "BOOT_ID", boot)
    synced = threading.Event()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: real(file) if synced.is_set() else synced.wait(60))
    names = list(CONTENTS)
    files = tmp_path / "files"
    for sha256 in names[:3]:
        use(Cache(tmp_path, None), sha256)
        assert (files / sha256).stat().st_mode & 0o777 == 0o600
    synced.set()
    wait_until(lambda: all((files / sha256).stat().st_mode & 0o777 == 0o400 for sha256 in names[:3]))
    for sha256 in names[1:3]:
        (files / sha256).chmod(0o600)
    (files / names[2]).write_bytes(bytes(100))
    boot.write_text("second")
    hashed: list[str] = []
    real_digest = loader.trust.digest
    monkeypatch.setattr(
        loader.trust, "digest", lambda file: (hashed.append(real_digest(file)), hashed[-1])[1]
    )
    for sha256 in names * 2:
        use(Cache(tmp_path, None), sha256)
        assert (files / sha256).read_bytes() == CONTENTS[sha256]
        wait_until(lambda sha256=sha256: (files / sha256).stat().st_mode & 0o777 == 0o400)
    assert names[1] in hashed and len(hashed) == 2
    assert f"{names[2]} is not what its name says: fetching it again" in caplog.text
