"""Files on this machine that a dataset of others is read from: what they are called, and which of them each of its shards takes."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from precompute.input.row_values import short_hash

SHARED = 1000
LOOKS = 1_000_000  # files of all shards together, of which each is listed
CARD = "README.md"


class LocalFiles:
    """All files of a folder but its README.md and what is of other splits; without one, those of the data files that lie here.

    data_files: of this split; elsewhere: of the others. paths: of all files, by name or in their own order.
    """

    def __init__(self, folder: Path | None, data_files: Sequence[str], elsewhere: Iterable[str]) -> None:
        if folder and folder.is_dir():
            others = set(map(os.path.realpath, elsewhere)).difference(map(os.path.realpath, data_files))
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CARD)
            self.paths = [str(path) for path in files if os.path.realpath(path) not in others]
            self._top = str(folder)
        else:
            self.paths = [os.path.abspath(path) for path in data_files if os.path.isfile(path)]
            self._top = os.path.commonpath([os.path.dirname(path) for path in self.paths] or [""])

    def identity(self, with_sizes: bool) -> str | None:
        """A hash of their names, wherever they lie; None where there are none."""
        names = [Path(path).relative_to(self._top).as_posix() for path in self.paths]
        sizes = [os.path.getsize(path) for path in self.paths] if with_sizes else []
        return short_hash(repr((names, sizes))) if names else None

    def by_shard(self, arguments: Mapping[str, Any]) -> list[list[str]] | None:
        """The files that each shard is read from, and those that no shard names; None where that cannot be told.

        arguments: what `datasets` reads the split by. It makes a shard of each place of the lists among them.
        """
        lists = [value for value in arguments.values() if isinstance(value, list)]
        if not lists:
            return [self.paths]
        named = [list(_names(entries)) for entries in zip(*lists, strict=True)]
        known = {os.path.realpath(path): path for path in self.paths}
        shards = [
            {known[place] for place in map(os.path.realpath, names) if place in known} for names in named
        ]
        rest = set(self.paths).difference(*shards)
        # Pictures that tables name, say: each unit would look at all of them.
        if not named or not all(named) or len(rest) > SHARED or len(rest) * len(shards) > LOOKS:
            return None
        return [sorted(shard | rest) for shard in shards]


def _names(value: Any) -> Iterator[str]:
    """Paths and addresses; of a file inside of another, as in gzip://a.json::a.json.gz, the other."""
    if isinstance(value, str):
        yield value.rpartition("::")[2]
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _names(one)
