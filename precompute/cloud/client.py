"""An object store by its five verbs: create, swap, get, list, delete. Waits out what passes, and explains what does not.

A write whose reply was lost is tried again, and finds itself there: what is found is compared with what was to be written.
"""

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PreconditionError,
    UnknownConfigurationKeyError,
)
from obstore.store import ObjectStore, from_url

from builders.archives import backoff
from precompute.cloud.credentials import aws_credentials
from precompute.cloud.trouble import NO_BUCKET, Trouble, code_of, first_line
from precompute.errors import UsageError

T = TypeVar("T")
Data = bytes | memoryview

LARGEST = 5 * 10**9  # bytes of one request that every store takes
TIMEOUT, UPLOAD = timedelta(seconds=30), timedelta(hours=1)  # of a request for a few bytes, and of a tar
WITHIN = timedelta(seconds=20)  # of tries that the client makes by itself, before it is our patience
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
    """Objects below a URL. store: for small requests; large: the same place with time for a tar.

    Every method raises StoreError once patience is over, at once where no waiting helps.
    """

    def __init__(self, flag: str, url: str, store: ObjectStore, large: ObjectStore | None = None) -> None:
        self._flag, self.url, self.trouble = flag, url, Trouble(f"{flag} {url}")
        self._store, self._large = store, large or store

    @classmethod
    def open(cls, flag: str, url: str, options: Iterable[str]) -> Self:
        """options: NAME=VALUE. Raises UsageError."""
        config: dict[str, Any] = store_config(options)
        extra: dict[str, Any] = {"retry_config": {"max_retries": 5, "retry_timeout": WITHIN}}
        if url.startswith("s3:") and "skip_signature" not in config and "access_key_id" not in config:
            provider, region = aws_credentials(config.pop("profile", None))
            if provider:
                extra["credential_provider"] = provider
            if region and "region" not in config:
                config["region"] = region

        opening: Any = from_url  # typed for one kind of store at a time

        def opened(timeout: timedelta) -> ObjectStore:
            client_options = {"timeout": timeout, "allow_http": True}
            store: ObjectStore = opening(
                url.rstrip("/"), config=config, client_options=client_options, **extra
            )
            return store

        try:
            return cls(flag, url, opened(TIMEOUT), opened(UPLOAD))
        except UnknownConfigurationKeyError as error:
            name = (re.findall(r"'(\w+)'", str(error)) or ["?"])[0]
            raise UsageError(
                f"--store-option {name}=...: no such option; endpoint, region, profile, anonymous=true and those of "
                "obstore's client configuration are"
            ) from error
        except BaseError as error:
            raise UsageError(
                f"{flag} {url}: {first_line(error)}. Check the URL and --store-option"
            ) from error

    def create(self, key: str, data: Data) -> Version | None:
        """Write an object that is not there; None where another is. One that is equal counts as ours."""
        patience = backoff.Patience()
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
        patience = backoff.Patience()
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
        patience = backoff.Patience()
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

    def delete(self, key: str) -> None:
        self._unless_missing(lambda: obstore.delete(self._store, key))

    def write(self, key: str, data: Data, mode: Any) -> Any:
        if len(data) > LARGEST:
            size = f"a file of {len(data) / 1e9:.3g} GB; a store takes {LARGEST / 1e9:.0f} GB in one request"
            raise UsageError(f"{self._flag} {self.url}: {size}. Give a smaller --samples-per-shard")
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
        patience = backoff.Patience()
        while True:
            try:
                return call()
            except conflicts:
                raise
            except FileNotFoundError as error:
                if code_of(error) in NO_BUCKET:
                    raise self.trouble.explained(error) from error
                raise
            except (BaseError, OSError, NotImplementedError) as error:
                self.trouble.wait(patience, error)


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


def store_config(options: Iterable[str]) -> dict[str, str]:
    """`--store-option NAME=VALUE` in the words of the client. Raises UsageError, which never shows a value."""
    config = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError("--store-option: give NAME=VALUE, as in endpoint=https://HOST or region=auto")
        config[{"anonymous": "skip_signature", "endpoint_url": "endpoint"}.get(name, name)] = value
    return config


def _found(entry: Any) -> Found:
    return Found(
        entry["path"], entry["size"], entry["e_tag"] or "", int(entry["last_modified"].timestamp() * 1e9)
    )
