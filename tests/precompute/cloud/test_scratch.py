"""The folder here in which units grow before they go to a store."""

import threading
import time
from pathlib import Path

import pytest

from precompute.cloud.scratch import Scratch


def test_threads_that_ask_at_once_have_one_folder_which_nobody_clears_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Scratch.sweep
    monkeypatch.setattr(Scratch, "sweep", lambda self: (sweep(self), time.sleep(0.05))[0])
    scratch, found = Scratch(tmp_path), list[Path]()
    threads = [threading.Thread(target=lambda: found.append(scratch.folder)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = Scratch(tmp_path)
    assert other.folder.is_dir() and set(found) == {scratch.folder} and scratch.folder.is_dir()
    scratch.close()
    other.close()
    assert not list(tmp_path.iterdir())
