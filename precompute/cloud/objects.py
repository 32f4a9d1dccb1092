"""Objects below a URL, read: asked for again where that may help, explained where it does not."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from builders.archives import backoff
from precompute.cloud.opening import open_stores
from precompute.cloud.trouble import NO_BUCKET, Trouble, code_of, first_line

T = TypeVar("T")

TIMEOUT, UPLOAD = timedelta(seconds=30), timedelta(hours=1)  # of a request for a few bytes, and of a tar
PROBE = ".work/probe"  # what begins the names of objects by which a store's conditions are tried out
TRIES = 3  # of that: whoever finishes sweeps what processes that died have left, and may meet one that only begins


@dataclass(frozen=True)
class Found:
    """An object. key: below the prefix; tag: its ETag without quotes, which Azure's listings leave out; time: when it was last
    written, in ns by the store's clock."""

    key: str
    size: int
    tag: str
    time: int


@dataclass(frozen=True)
class Version:
    """What a swap holds an object against. tag: its ETag; generation: of GCS, empty elsewhere."""

    tag: str
    generation: str = ""

    @classmethod
    def of(cls, answer: Any) -> Self:
        return cls(answer["e_tag"] or "", answer["version"] or "")

    def is_of(self, found: Found) -> bool:
        """Whether an object has this version still."""
        return self.tag.strip('"') == found.tag

    @property
    def condition(self) -> Any:
        held = {"e_tag": self.tag, "version": self.generation}
        return {name: value for name, value in held.items() if value}


class Objects:
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

    @classmethod
    def open(cls, flag: str, url: str, options: Iterable[str], reads: float | None = None) -> Self:
        """options: NAME=VALUE. Raises UsageError."""
        small, large = open_stores(flag, url, options, (TIMEOUT, UPLOAD))
        return cls(flag, url, small, large, reads)

    @property
    def lists_after(self) -> bool:
        """Whether the store itself leaves names out of a listing; Azure lists all, whatever is asked for."""
        return not self.url.startswith("az:")

    def get(self, key: str) -> tuple[bytes, Version] | None:
        def ask() -> tuple[bytes, Version]:
            answer = obstore.get(self._store, key)
            return bytes(answer.bytes()), Version.of(answer.meta)

        return self._unless_missing(ask)

    def head(self, key: str) -> Found | None:
        return self._unless_missing(lambda: _found(obstore.head(self._store, key)))

    def get_range(self, key: str, start: int, end: int) -> bytes:
        return self.ask(lambda: bytes(obstore.get_range(self._large, key, start=start, end=end)))

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
                    self.trouble.passed()
                return
            except FileNotFoundError as error:
                raise self._missing(error) from error
            except (BaseError, OSError) as error:
                self.trouble.wait(patience, error)
                size = self.head(key)
                if size is not None and position == size.size:
                    return

    def list(self, prefix: str | None = None, after: str | None = None) -> Iterator[Found]:
        """Objects in order of their keys, a thousand a request. after: leave out all keys up to this one."""
        patience = backoff.Patience(self._patience)
        while True:
            try:
                for chunk in obstore.list(self._store, prefix, offset=after):
                    self.trouble.passed()
                    for entry in chunk:
                        found = _found(entry)
                        yield found
                        after = found.key
                return
            except (BaseError, OSError, NotImplementedError) as error:
                self.trouble.wait(patience, error)

    def _unless_missing(self, call: Callable[[], T]) -> T | None:
        try:
            return self.ask(call)
        except FileNotFoundError:
            return None

    def ask(self, call: Callable[[], T], conflicts: tuple[type[Exception], ...] = ()) -> T:
        """What a request gives, once it does. conflicts: answers that are the caller's."""
        patience = backoff.Patience(self._patience)
        while True:
            try:
                result = call()
                self.trouble.passed()
                return result
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


def _found(entry: Any) -> Found:
    tag, written = (entry["e_tag"] or "").strip('"'), int(entry["last_modified"].timestamp() * 1e9)
    return Found(entry["path"], entry["size"], tag, written)
