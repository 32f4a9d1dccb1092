"""Where a run's shards go, and how its processes meet there: what leases, manifest and unit writer ask of it.

A folder is one (precompute/shards/output_folder.py), an object store another (precompute/cloud/output_store.py). Names of
control files are seen by processes alone; names of finished files are the dataset's. What is finished appears whole or not at all.
"""

from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

WORK = ".work"  # where control and temporary files lie


@dataclass(frozen=True)
class Entry:
    """A finished file. size in bytes. time: when it was written, in ns by the clock of the place. version: another one
    whenever the file is another."""

    size: int
    time: int
    version: Hashable


class Destination(Protocol):
    """One place and one split. Every method may raise OSError; a file that is gone is no error."""

    @property
    def split(self) -> str:
        """Name of the split that is written."""
        ...

    @property
    def behind(self) -> int:
        """How many finished units may be on their way there while the next is written; 0 where that takes no time."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Make a control file; False where there is one already. Of any number of processes one makes it."""
        ...

    def touch(self, name: str) -> None:
        """Give a control file of this process another version."""
        ...

    def version(self, name: str) -> Hashable:
        """What tells whether a control file was touched since; None where there is none."""
        ...

    def time(self, name: str) -> int | None:
        """When a control file was last written, in ns by the clock of the place; None where there is none."""
        ...

    def read(self, name: str) -> bytes:
        """The first bytes of a control file, up to a few thousand; empty where there is none."""
        ...

    def controls(self) -> list[str]:
        """Names of all control files, and of what else lies among them."""
        ...

    def versions(self) -> dict[str, Hashable]:
        """Versions of all control files, from one listing where the place gives them with it; None of one gone meanwhile."""
        ...

    def remove(self, name: str) -> None:
        """Take a control file away, if it is there."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Write a finished file that any process may write, over the one that is there."""
        ...

    def swap(self, name: str, data: bytes, version: Hashable) -> bool:
        """Write a finished file over the one whose entry has this version, or where there is none: None. False where it
        has another by now, also where this write arrives long after its process has ended."""
        ...

    def get(self, name: str) -> bytes | None:
        """A finished file, whole; None where there is none."""
        ...

    def get_many(self, names: Iterable[str]) -> Iterator[bytes | None]:
        """Finished files, in the order of `names`."""
        ...

    def here(self, names: Iterable[str]) -> AbstractContextManager[dict[str, Path]]:
        """Finished files as files on a disk here, for as long as the block takes; those that there are."""
        ...

    def entry(self, name: str) -> Entry | None:
        """A finished file by its name; None where there is none."""
        ...

    def files(self, wanted: Callable[[str], bool]) -> dict[str, Entry]:
        """Finished files, by name."""
        ...

    def finished(self) -> set[int]:
        """Indices of the split's units whose marker is there."""
        ...

    def is_finished(self, unit: int) -> bool:
        """Whether the marker of a unit is there at this instant."""
        ...

    def delete(self, name: str) -> None:
        """Take a finished file away, if it is there."""
        ...

    def begin(self, stem: str, owner: str) -> Path:
        """An empty folder on a disk here, in which a unit's files grow. owner: `TURN-PROCESS`; a later turn wins."""
        ...

    def publish(self, files: Mapping[str, Path], name: str) -> str:
        """Make files out of `begin`'s folder, by suffix, finished ones of this name, or of another that is returned where
        the place has this one already. Raises an OSError that `is_gone` once `revoke` took them."""
        ...

    def mark(self, stem: str, data: bytes, files: Container[str], begun: Path) -> None:
        """Write a unit's marker, the last of its files; files of the unit that are not among `files` go. Raises
        LostLease where another has finished the unit."""
        ...

    def end(self, begun: Path) -> None:
        """Leave nothing of `begin`'s folder."""
        ...

    def revoke(self, stem: str, turn: int) -> None:
        """Take from a unit's owners before `turn` what they have begun, so that one that was asleep can publish nothing."""
        ...

    def close(self, sweep: bool = False) -> None:
        """Leave no empty place of control files. sweep: nor what dead processes left of finished units."""
        ...


def stem_of(split: str, unit: int) -> str:
    """`train-00000`: what the names of a unit's files begin with."""
    return f"{split}-{unit:05d}"
