"""The control files of a run in an object store: `PREFIX/.work/NAME`, made exclusively and kept alive by swaps.

A listing tells the versions of all of them at once. A store knows an object by its contents, so what is touched gets other
blanks at its end.
"""

import threading
from collections.abc import Hashable

from precompute.cloud.client import Client
from precompute.cloud.objects import Found, Version
from precompute.shards.destination import WORK


class StoreControls:
    """The control files, as one process sees them. Requests: one to create, touch or remove, one a thousand to list."""

    def __init__(self, client: Client, split: str) -> None:
        self._client, self.split = client, split
        self._mine: dict[str, tuple[bytes, int, Version]] = {}  # contents, touches, version
        self._others: dict[str, bytes] = {}  # contents of those seen: they change in their blanks only
        self._seen = threading.local()  # what the last listing of each thread found

    def __str__(self) -> str:
        return self._client.url

    def create(self, name: str, data: bytes) -> bool:
        version = self._client.create(_key(name), data)
        if version is None:
            return False
        self._mine[name] = data, 0, version
        return True

    def touch(self, name: str) -> None:
        mine = self._mine.get(name)
        if mine is None:
            return
        data, touches, version = mine
        renewed = self._client.swap(_key(name), data + _blanks(touches + 1), version)
        if renewed is None:
            self._mine.pop(name, None)
        elif name in self._mine:
            self._mine[name] = data, touches + 1, renewed

    def version(self, name: str) -> Hashable:
        found = self._listed.get(name) or self._client.head(_key(name))
        return found.tag if found else None

    def time(self, name: str) -> int | None:
        found = self._client.head(_key(name))
        return found.time if found else None

    def read(self, name: str) -> bytes:
        mine, listed = self._mine.get(name), self._listed.get(name)
        if mine is not None and listed is not None and mine[2].is_of(listed):
            return mine[0]
        if mine is None and listed is not None and name in self._others:
            return self._others[name]
        found = self._client.get(_key(name))
        data = found[0].rstrip(b" \t") if found else b""
        if found is not None and mine is None:
            self._others[name] = data
        return data

    def controls(self) -> list[str]:
        found = {found.key.removeprefix(f"{WORK}/"): found for found in self._client.list(WORK)}
        self._seen.found = found
        for name in self._others.keys() - found.keys():
            self._others.pop(name, None)
        return list(found)

    def versions(self) -> dict[str, Hashable]:
        self.controls()
        return {name: found.tag for name, found in self._listed.items()}

    def remove(self, name: str) -> None:
        self._mine.pop(name, None)
        self._client.delete(_key(name))

    @property
    def _listed(self) -> dict[str, Found]:
        """Give by name what this thread has listed last: it looks at once at what it has listed."""
        found: dict[str, Found] = getattr(self._seen, "found", {})
        return found


def _key(name: str) -> str:
    return f"{WORK}/{name}"


def _blanks(number: int) -> bytes:
    """A number in blanks, which JSON may end with."""
    return f"{number:b}".translate({ord("0"): " ", ord("1"): "\t"}).encode()
