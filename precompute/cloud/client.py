"""An object store by its five verbs: create, swap, get, list, delete. Waits out what passes, and explains what does not.

A write whose reply was lost is tried again, and finds itself there: what is found is compared with what was to be written.
"""

import secrets
from collections.abc import Iterable
from typing import Any, Self

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import ObjectStore

from builders.archives import backoff
from precompute.cloud.multipart import Multipart
from precompute.cloud.objects import PROBE, TIMEOUT, TRIES, UPLOAD, Objects, Version
from precompute.cloud.opening import open_stores
from precompute.errors import UsageError

Data = bytes | memoryview

LARGEST = {"gs": 5 * 10**12}  # bytes of one request, by scheme
USUAL = 5 * 10**9  # of the others
CONFLICT = (AlreadyExistsError, PreconditionError)


class Client(Objects):
    """Objects below a URL, written to under conditions. Raises as reading does."""

    def __init__(
        self,
        flag: str,
        url: str,
        store: ObjectStore,
        large: ObjectStore | None = None,
        parts_options: Iterable[str] | None = None,
    ) -> None:
        """parts_options: NAME=VALUE for the client that sends large files to s3:// in parts; None: they go whole."""
        super().__init__(flag, url, store, large)
        in_parts = parts_options is not None and url.startswith("s3:")
        self._multipart = Multipart(url, parts_options or (), self.ask) if in_parts else None

    @classmethod
    def open(cls, flag: str, url: str, options: Iterable[str], reads: float | None = None) -> Self:
        """options: NAME=VALUE. Raises UsageError."""
        assert reads is None, "it writes"
        small, large = open_stores(flag, url, options, (TIMEOUT, UPLOAD))
        return cls(flag, url, small, large, options)

    def create(self, key: str, data: Data) -> Version | None:
        """Write an object that is not there; None where another is. One that is equal counts as ours."""
        patience = backoff.Patience(self._patience)
        while True:
            try:
                return Version.of(self.write(key, data, "create"))
            except CONFLICT as error:
                there = self.compare(key, data)
                if there is not None:
                    return there[0] if there[1] else None
                self.trouble.wait(patience, error)

    def swap(self, key: str, data: Data, version: Version) -> Version | None:
        """Write over the object that had this version; None where it is another now, or none."""
        patience = backoff.Patience(self._patience)
        while True:
            try:
                return Version.of(self.write(key, data, version.condition))
            except (*CONFLICT, FileNotFoundError) as error:
                there = self.compare(key, data)
                if there is None or there[1] or there[0].tag != version.tag:
                    return there[0] if there and there[1] else None
                self.trouble.wait(patience, error)

    def put(self, key: str, data: Data) -> None:
        self.write(key, data, "overwrite")

    def compare(self, key: str, data: Data) -> tuple[Version, bool] | None:
        """What is there, and whether it is the same, byte by byte; None where nothing is."""

        def ask() -> tuple[Version, bool]:
            answer = obstore.get(self._large, key)
            version, expected, position = Version.of(answer.meta), memoryview(data), 0
            if answer.meta["size"] != len(expected):
                return version, False
            for chunk in answer.stream():
                block = memoryview(chunk)
                if block != expected[position : position + len(block)]:
                    return version, False
                position += len(block)
            return version, True

        return self._unless_missing(ask)

    def sweep(self, stem: str) -> None:
        """Leave no part of an upload that was broken off, of a unit's files."""
        if self._multipart is not None and self._multipart.in_use:
            self._multipart.sweep(stem)

    def delete(self, key: str) -> None:
        self._unless_missing(lambda: obstore.delete(self._store, key))

    def write(self, key: str, data: Data, mode: Any) -> Any:
        if len(data) > LARGEST.get(self.url.partition(":")[0], USUAL):
            if self._multipart is None or mode != "create":
                size = f"a file of {len(data) / 1e9:.3g} GB; this store takes {USUAL / 1e9:.0f} GB in one request"
                raise UsageError(f"{self.place}: {size}. Give a smaller --samples-per-shard")
            return self._multipart.create(key, memoryview(data))
        store = self._large if len(data) > 1 << 20 else self._store
        conflicts = () if mode == "overwrite" else CONFLICT
        return self.ask(lambda: obstore.put(store, key, data, mode=mode, use_multipart=False), conflicts)


def try_out(client: Client) -> None:
    """Raises StoreError, with the cure, where processes could not meet here."""
    if not any(_honours(client) for _ in range(TRIES)):
        raise client.trouble.no_conditions()


def _honours(client: Client) -> bool:
    key = f"{PROBE}-{secrets.token_hex(8)}"
    version = client.create(key, b"1")
    try:
        honoured = version is not None and _refuses(client, key, "create")
        honoured = honoured and _refuses(client, key, Version('"none"', "1").condition)
        return honoured and client.swap(key, b"2", version or Version("")) is not None
    finally:
        client.delete(key)


def _refuses(client: Client, key: str, mode: Any) -> bool:
    try:
        client.write(key, b"0", mode)
    except (*CONFLICT, FileNotFoundError):
        return True
    return False
