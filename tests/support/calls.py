"""The order of the calls that durability hangs on."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Call(NamedTuple):
    """file: its inode, which a rename does not change. target: where a rename put it; empty for a sync."""

    file: int
    target: str


class Calls:
    """Records syncs and renames from now on, in whichever thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Call] = []
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._synced(getattr(os, name)))
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._renamed(getattr(os, name)))

    def _synced(self, call: Any) -> Any:
        def recorded(file: Any) -> None:
            call(file)
            self.seen.append(Call(os.stat(file if isinstance(file, int) else file.fileno()).st_ino, ""))

        return recorded

    def _renamed(self, call: Any) -> Any:
        def recorded(source: Any, target: Any, **options: Any) -> None:
            self.seen.append(Call(os.stat(source).st_ino, os.path.realpath(target)))
            call(source, target, **options)

        return recorded

    def renamed_into(self, folder: Path) -> list[str]:
        """Names of the files that were renamed into the folder, in order, each of which must have been synced before."""
        names = []
        for number, (file, target) in enumerate(self.seen):
            if target and Path(target).parent == folder.resolve():
                synced = Call(file, "") in self.seen[:number]
                assert synced, f"{Path(target).name} was renamed before it was synced"
                names.append(Path(target).name)
        return names

    def when_synced(self, folder: Path) -> list[int]:
        """Places in `seen` of the syncs of the folder itself, which is what makes its names last."""
        return [n for n, call in enumerate(self.seen) if call == (folder.stat().st_ino, "")]

    def when_renamed(self, *suffixes: str) -> list[int]:
        """Places in `seen` of the renames to such names."""
        return [n for n, call in enumerate(self.seen) if call.target.endswith(suffixes)]
