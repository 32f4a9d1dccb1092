"""An object store as the place of a run's shards: tars grow on a disk here, and are written there whole, under conditions.

A process that was away and wakes overwrites nothing that a marker names: every file of a unit is created, and none is ever
written over. Where a file of that name is there already, from an owner that died, it counts as ours if it is equal, which
it is where the values are the same on both machines; else ours gets the next free name, and the marker says so. The marker
is created too, last and once; what of the unit it does not name is deleted then.
"""

import contextlib
import mmap
import re
import shutil
import tempfile
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from pathlib import Path

from builders.archives import backoff
from precompute.cloud.client import Client
from precompute.cloud.finished_units import FinishedUnits
from precompute.cloud.objects import PROBE
from precompute.cloud.scratch import Scratch
from precompute.cloud.store_controls import StoreControls
from precompute.errors import LostLease
from precompute.shards.destination import WORK, Entry, stem_of
from precompute.shards.markers import is_marker, parse_marker

READERS = 32  # requests at once for what many markers say
FETCHERS = 4  # tars that come here at once
OTHERS = 50  # numbers of shards behind which those begin that met another's file


class OutputStore(StoreControls):
    """A `Destination` in an object store. scratch: folder on a disk here, for the units in work and on their way.

    Requests a unit: one for each file, two for what is finished, and where a unit was taken over a few more.
    """

    behind = 2

    def __init__(self, client: Client, split: str, scratch: Path) -> None:
        super().__init__(client, split)
        self._scratch = Scratch(scratch)
        self._met: set[str] = set()  # units of which an earlier owner had left a file
        self._finished = FinishedUnits(client, split)

    # --- finished files ---

    def put(self, name: str, data: bytes) -> None:
        self._client.put(name, data)

    def swap(self, name: str, data: bytes, version: Hashable) -> bool:
        if version is None:
            return self._client.create(name, data) is not None
        there = self._client.get(name)
        # By what the store holds a write against, which is more than an entry tells.
        return (
            there is not None
            and there[1].tag.strip('"') == version
            and self._client.swap(name, data, there[1]) is not None
        )

    def get(self, name: str) -> bytes | None:
        found = self._client.get(name)
        return found[0] if found else None

    def get_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        with backoff.pool(READERS, "get") as pool:
            yield from pool.map(self.get, names)

    @contextlib.contextmanager
    def here(self, names: Iterable[str]) -> Iterator[dict[str, Path]]:
        with tempfile.TemporaryDirectory(dir=self._scratch.folder) as folder:
            paths = {name: Path(folder) / str(number) for number, name in enumerate(names)}
            with backoff.pool(FETCHERS, "here") as pool:
                found = dict(zip(paths, pool.map(self._fetch, paths, paths.values()), strict=True))
            yield {name: path for name, path in paths.items() if found[name]}

    def _fetch(self, name: str, path: Path) -> bool:
        with open(path, "wb") as file:
            try:
                for block in self._client.stream(name):
                    file.write(block)
            except FileNotFoundError:
                return False
        return True

    def entry(self, name: str) -> Entry | None:
        found = self._client.head(name)
        return Entry(found.size, found.time, found.tag) if found else None

    def files(self, wanted: Callable[[str], bool]) -> dict[str, Entry]:
        return {
            found.key: Entry(found.size, found.time, found.tag)
            for found in self._client.list()
            if wanted(found.key)
        }

    def finished(self) -> set[int]:
        return self._finished.all()

    def is_finished(self, unit: int) -> bool:
        finished = self._client.head(f"{stem_of(self.split, unit)}.json") is not None
        if finished:
            self._finished.add(unit)
        return finished

    def delete(self, name: str) -> None:
        self._client.delete(name)
        if is_marker(name) and name.startswith(f"{self.split}-"):
            self._finished.discard(int(name.removesuffix(".json").rpartition("-")[2]))

    # --- units ---

    def begin(self, stem: str, owner: str) -> Path:
        path = self._scratch.folder / f"{stem}.{owner}"
        path.mkdir()
        return path

    def publish(self, files: Mapping[str, Path], name: str) -> str:
        stem, other = next(iter(files.values())).parent.name.partition(".")[0], OTHERS
        while not all(self._create(f"{name}{suffix}", path) for suffix, path in files.items()):
            self._met.add(stem)
            name, other = f"{stem}-{other:02d}", other + 1
        return name

    def mark(self, stem: str, data: bytes, files: Container[str], begun: Path) -> None:
        won = self._client.create(f"{stem}.json", data) is not None
        self._finished.add(int(stem.rpartition("-")[2]))
        if not won or stem in self._met or _turn(begun) > 1:
            self._tidy(stem)
        if not won:
            raise LostLease(f"{stem} was finished by another process")

    def end(self, begun: Path) -> None:
        shutil.rmtree(begun, ignore_errors=True)

    def revoke(self, stem: str, turn: int) -> None:
        """Nothing: what earlier owners have begun lies on their disks, and what they may yet create harms nobody."""

    def close(self, sweep: bool = False) -> None:
        if sweep:
            finished = {stem_of(self.split, unit) for unit in self.finished()}
            for name in self.controls():
                if name.partition(".")[0] in finished or f"{WORK}/{name}".startswith(PROBE):
                    self.remove(name)
        self._scratch.close()

    def _create(self, name: str, path: Path) -> bool:
        """Whether the file is there now, and nobody else's."""
        with open(path, "rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return self._client.create(name, data) is not None

    def _tidy(self, stem: str) -> None:
        """Delete what there is of a finished unit that its marker does not name."""
        self._met.discard(stem)
        self._client.sweep(stem)
        data = self.get(f"{stem}.json")
        if data is None:
            return
        named = {shard.name for shard in parse_marker(f"{self}/{stem}.json", data).shards}
        for found in self._client.list(after=stem):
            if not found.key.startswith(stem):
                break
            name, _, suffix = found.key.rpartition(".")
            ours = name == stem or re.fullmatch(re.escape(stem) + r"-\d+", name)
            if ours and suffix in ("tar", "parquet") and name not in named:
                self._client.delete(found.key)


def _turn(begun: Path) -> int:
    """How often the unit was claimed: `STEM.TURN-PROCESS` is the name of its folder."""
    return int(begun.name.rpartition(".")[2].partition("-")[0])
