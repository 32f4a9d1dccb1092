"""A folder as the place of a run's shards: whatever is finished is written whole, synced, and only then renamed into place.

OutputFolder(Path("latents/cc12m"), "train").put("manifest.json", data)
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from precompute.errors import UsageError
from precompute.shards.destination import Entry, stem_of
from precompute.shards.missing_ok import is_gone, may_be_gone
from precompute.shards.work_folder import WorkFolder, sync_directory

TEMPORARY, GONE = "tmp-", ".gone"
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of which a Path swallows one slash


class OutputFolder(WorkFolder):
    """A `Destination` on a disk, be it one that many machines share. The folder itself is there already."""

    behind = 0

    # --- finished files ---

    def put(self, name: str, data: bytes) -> None:
        while True:
            self._make_work()
            try:
                return self._replace(
                    self.path / name, data, self._work / f"{TEMPORARY}{secrets.token_hex(8)}"
                )
            except OSError as error:
                if not is_gone(error):
                    raise  # else it was swept away by a process that finds all work done

    def swap(self, name: str, data: bytes, version: Hashable) -> bool:
        there = self.entry(name)
        if (there.version if there else None) != version:
            return False
        self.put(name, data)
        return True

    def get(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            if not is_gone(error):
                raise
            return None

    def get_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        return map(self.get, names)

    @contextlib.contextmanager
    def here(self, names: Iterable[str]) -> Iterator[dict[str, Path]]:
        yield {name: path for name in names if (path := self.path / name).exists()}

    def entry(self, name: str) -> Entry | None:
        try:
            about = (self.path / name).stat()
        except OSError as error:
            if not is_gone(error):
                raise
            return None
        return Entry(about.st_size, about.st_mtime_ns, (about.st_mtime_ns, about.st_ino))

    def files(self, wanted: Callable[[str], bool]) -> dict[str, Entry]:
        found = ((name, self.entry(name)) for name in os.listdir(self.path) if wanted(name))
        return {name: entry for name, entry in found if entry is not None}

    def finished(self) -> set[int]:
        pattern = re.compile(re.escape(self.split) + r"-(\d{5,})\.json")
        return {int(m[1]) for name in os.listdir(self.path) if (m := pattern.fullmatch(name))}

    def is_finished(self, unit: int) -> bool:
        return (self.path / f"{stem_of(self.split, unit)}.json").exists()

    def delete(self, name: str) -> None:
        with may_be_gone():
            self.disk_unlink(self.path / name)

    # --- units ---

    def begin(self, stem: str, owner: str) -> Path:
        while True:
            self._make_work()
            path = self._work / f"{stem}.{owner}"
            try:
                path.mkdir()
                return path
            except FileNotFoundError:
                continue  # the empty folder was removed

    def publish(self, files: Mapping[str, Path], name: str) -> str:
        for suffix, path in files.items():
            self.disk_rename(path, self.path / f"{name}{suffix}")
        return name

    def mark(self, stem: str, data: bytes, files: Container[str], begun: Path) -> None:
        for suffix in (".tar", ".parquet"):
            for pattern in (f"{stem}{suffix}", f"{stem}-*{suffix}"):
                # An earlier owner had renamed it into place before it died, and this one has no file of that name.
                for leftover in self.path.glob(pattern):
                    if leftover.name not in files:
                        self.delete(leftover.name)
        sync_directory(self.path)
        self._replace(self.path / f"{stem}.json", data, begun / "marker")

    def end(self, begun: Path) -> None:
        shutil.rmtree(begun, ignore_errors=True)

    def revoke(self, stem: str, turn: int) -> None:
        for name in self.controls():
            owner = re.fullmatch(re.escape(stem) + r"\.(\d+)-.*", name)
            if owner and name.endswith(GONE):
                self.remove(name)
            elif owner and int(owner[1]) < turn:
                with may_be_gone():
                    # At one stroke, so that an owner that was only asleep finds nothing left to make visible.
                    self.disk_rename(self._work / name, self._work / f"{name}{GONE}")
                    self.remove(f"{name}{GONE}")

    def close(self, sweep: bool = False) -> None:
        if sweep:
            finished = {stem_of(self.split, unit) for unit in self.finished()}
            for name in self.controls():
                if name.startswith(TEMPORARY) or name.partition(".")[0] in finished:
                    self.remove(name)
        with contextlib.suppress(OSError):
            self._work.rmdir()


def write_file(path: Path, data: bytes) -> None:
    """A file beside others in a folder that no run is at: whole or not at all."""
    OutputFolder(path.parent)._replace(path, data, path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp"))


def open_folder(flag: str, folder: Path) -> None:
    """Make the folder, and write to it once. Raises UsageError, which starts with `flag`, where that fails, or it is a URL."""
    if URL.match(str(folder)):
        raise UsageError(f"{flag} {folder}: a URL; name a folder on a disk here")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"{flag} {folder}: cannot write there ({error.strerror}); name another folder"
        ) from error
