"""The cache by itself: what goes first, and what is safe on disk before it has a name."""

import hashlib
import os
from pathlib import Path

import pytest

from loader.cache import Cache
from tests.support.calls import Calls

CONTENTS = {hashlib.sha256(data).hexdigest(): data for data in (bytes([i]) * 100 for i in range(4))}


def use(cache: Cache, sha256: str) -> None:
    """Open and close it; it is fetched where it is not there."""

    def fetch(descriptor: int) -> None:
        os.pwrite(descriptor, CONTENTS[sha256], 0)

    os.close(cache.open(sha256, 100, "made up", fetch))


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


def test_a_fetched_file_is_synced_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, (sha256, *_) = Calls(monkeypatch), CONTENTS
    use(Cache(tmp_path, None), sha256)
    assert calls.renamed_into(tmp_path / "files") == [sha256]
