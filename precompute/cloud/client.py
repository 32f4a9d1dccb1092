"""An object store by its five verbs: create, swap, get, list, delete. Waits out what passes, and explains what does not.

A write whose reply was lost is tried again, and finds itself there: what is found is compared with what was to be written.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore

from builders.archives import backoff
from precompute.cloud.multipart import Multipart
from precompute.cloud.opening import open_stores
from precompute.cloud.trouble import NO_BUCKET, Trouble, code_of, first_line
from precompute.errors import UsageError

T = TypeVar("T")
Data = bytes | memoryview

LARGEST = {"gs": 5 * 10**12}  # bytes of one request, by scheme
USUAL = 5 * 10**9  # of the others
TIMEOUT, UPLOAD = timedelta(seconds=30), timedelta(hours=1)  # of a request for a few bytes, and of a tar
CONFLICT = (AlreadyExistsError, PreconditionError)
PROBE = ".work/probe"


@dataclass(frozen=True)
class Found:
    """An object. key: below the prefix; time: when it was last written, in ns by the store's clock."""

    key: str
    size: int
    tag: str
    time: int


@dataclass(frozen=True)
class Version:
    """What a swap holds an object against. tag: in listings too; generation: of GCS, empty elsewhere."""

    tag: str
    generation: str = ""

    @classmethod
    def of(cls, answer: Any) -> Self:
        return cls(answer["e_tag"] or "", answer["version"] or "")

    @property
    def condition(self) -> Any:
        held = {"e_tag": self.tag, "version": self.generation}
        return {name: value for name, value in held.items() if value}


class Client:
    """Objects below a URL. store: for small requests; large: the same place with time for a tar. reads: of a client that
    only reads, the seconds of pauses until it gives up.

    Every method raises StoreError once patience is over, at once where no waiting helps.
    """

    def __init__(
        self,
        flag: str,
        url: str,
        store: ObjectStore,
        large: ObjectStore | None = None,
        reads: float | None = None,
    ) -> None:
        self.url, self.place = url, f"{flag} {url}".strip()
        self.trouble, self._patience = Trouble(self.place, writes=reads is None), reads
        self._store, self._large = store, large or store
        self._multipart: Multipart | None = None

    @classmethod
    def open(cls, flag: str, url: str, options: Iterable[str], reads: float | None = None) -> Self:
        """options: NAME=VALUE. Raises UsageError."""
        small, large = open_stores(flag, url, options, (TIMEOUT, UPLOAD))
        client = cls(flag, url, small, large, reads)
        if url.startswith("s3:"):
            client._multipart = Multipart(url, options, client._ask)
        return client

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

    def get(self, key: str) -> tuple[bytes, Version] | None:
        def ask() -> tuple[bytes, Version]:
            answer = obstore.get(self._store, key)
            return bytes(answer.bytes()), Version.of(answer.meta)

        return self._unless_missing(ask)

    def head(self, key: str) -> Found | None:
        return self._unless_missing(lambda: _found(obstore.head(self._store, key)))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self._ask(lambda: bytes(obstore.get_range(self._large, key, start=start, end=end)))

    def stream(self, key: str) -> Iterator[memoryview]:
        """All of an object, in blocks; what breaks off goes on where it was. Raises FileNotFoundError too."""
        position, patience = 0, backoff.Patience(self._patience)
        while True:
            try:
                options: Any = {"range": {"offset": position}} if position else {}
                answer = obstore.get(self._large, key, options=options)
                for chunk in answer.stream():
                    yield memoryview(chunk)
                    position, patience = position + len(chunk), backoff.Patience(self._patience)
                return
            except FileNotFoundError as error:
                raise self._missing(error) from error
            except (BaseError, OSError) as error:
                self.trouble.wait(patience, error)
                size = self.head(key)
                if size is not None and position == size.size:
                    return

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

    def list(self, prefix: str | None = None, after: str | None = None) -> Iterator[Found]:
        """Objects in order of their keys, a thousand a request. after: leave out all keys up to this one."""
        patience = backoff.Patience(self._patience)
        while True:
            try:
                for chunk in obstore.list(self._store, prefix, offset=after):
                    for entry in chunk:
                        found = _found(entry)
                        yield found
                        after = found.key
                return
            except (BaseError, OSError, NotImplementedError) as error:
                self.trouble.wait(patience, error)

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
        return self._ask(lambda: obstore.put(store, key, data, mode=mode, use_multipart=False), conflicts)

    def _unless_missing(self, call: Callable[[], T]) -> T | None:
        try:
            return self._ask(call)
        except FileNotFoundError:
            return None

    def _ask(self, call: Callable[[], T], conflicts: tuple[type[Exception], ...] = ()) -> T:
        """What a request gives, once it does. conflicts: answers that are the caller's."""
        patience = backoff.Patience(self._patience)
        while True:
            try:
                return call()
            except conflicts:
                raise
            except FileNotFoundError as error:
                raise self._missing(error) from error
            except (BaseError, OSError, NotImplementedError) as error:
                self.trouble.wait(patience, error)

    def _missing(self, error: FileNotFoundError) -> OSError:
        """The object is not there, or there is not even the bucket."""
        if code_of(error) in NO_BUCKET:
            return self.trouble.explained(error)
        return FileNotFoundError(f"{self.place}: {first_line(error)}")


def try_out(client: Client) -> None:
    """Raises StoreError, with the cure, where processes could not meet here."""
    key, body = f"{PROBE}-{secrets.token_hex(8)}", b"1"
    version = client.create(key, body)
    try:
        honoured = version is not None and _refuses(client, key, "create")
        honoured = honoured and _refuses(client, key, Version('"none"', "1").condition)
        honoured = honoured and client.swap(key, b"2", version or Version("")) is not None
    finally:
        client.delete(key)
    if not honoured:
        raise client.trouble.no_conditions()


def _refuses(client: Client, key: str, mode: Any) -> bool:
    try:
        client.write(key, b"0", mode)
    except (*CONFLICT, FileNotFoundError):
        return True
    return False


def _found(entry: Any) -> Found:
    return Found(
        entry["path"], entry["size"], entry["e_tag"] or "", int(entry["last_modified"].timestamp() * 1e9)
    )
