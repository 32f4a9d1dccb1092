"""What the first batches read of shards that are on the way: all of it, or an error."""

import os
from pathlib import Path

import pytest

from loader.part import GrowingFile
from loader.partial import Partial


def test_a_disk_that_takes_little_at_once_gets_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, bytes(data)[:3], at))
    partial = Partial(tmp_path, [(5, 15)])
    partial.put(5, b"0123456789")
    assert os.pread(partial.descriptor, 20, 5) == b"0123456789"


def test_a_span_that_was_not_written_is_an_error_and_no_wait(tmp_path: Path) -> None:
    part = GrowingFile(os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT))
    partial = Partial(tmp_path, [(0, 10)])
    partial.put(0, b"01234")
    with pytest.raises(OSError, match="is not here"):
        partial.copy(part)
    assert part.size == 5
    os.close(part.descriptor)
