"""An S3 server of moto that fails when it is told to: refuses, answers late, loses its reply, does a thing twice."""

import io
import logging
import random
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

KEYS = {"access_key_id": "made-up", "secret_access_key": "s3cr3t-of-the-store"}
Environ = dict[str, Any]
# What happens to a request: one of Front's words, or a status; None: nothing.
Answer = Callable[[Environ], str | None]


def error_body(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>made up</Message></Error>".encode()


class Front:
    """A WSGI application before another. answer: says what becomes of a request: `lost` (done, and then a 500),
    `twice`, `deaf` (conditions are not looked at), `cut` (in the middle of its body), `503`, or `400 ExpiredToken`;
    seconds: that each takes."""

    def __init__(self, app: Any) -> None:
        self.app, self.seconds = app, 0.0
        self.answer: Answer = lambda environ: None
        self.log: list[tuple[str, str]] = []
        self.queries: list[str] = []
        self.ranges: list[tuple[str, str]] = []  # path and range of each GET

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        time.sleep(self.seconds)
        self.log.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        self.queries.append(environ.get("QUERY_STRING", ""))
        if environ["REQUEST_METHOD"] == "GET":
            self.ranges.append((environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        does = self.answer(environ)
        if does == "deaf":
            environ.pop("HTTP_IF_NONE_MATCH", None)
            environ.pop("HTTP_IF_MATCH", None)
        elif does in ("lost", "twice"):
            done = self.app({**environ, "wsgi.input": io.BytesIO(body)}, lambda *_, **__: None)
            list(done)
            if does == "lost":
                return self._say("500 Internal Error", b"", start_response)
        elif does == "cut":
            whole = b"".join(self.app(environ, start_response))
            return [whole[: len(whole) // 2]]
        elif does is not None:
            status, _, code = does.partition(" ")
            return self._say(f"{status} Made Up", error_body(code) if code else b"", start_response)
        return self.app(environ, start_response)

    def _say(self, status: str, body: bytes, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]


class FaultyStore:
    """The server, empty, and a client of its own to look at what is there. One at a time in a process."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        inner: Any = self._server._server
        self.front = inner.app = Front(inner.app)
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        # What moto keeps is its process's: objects of a store before this one would be there still.
        urllib.request.urlopen(f"{self.endpoint}/moto-api/reset", b"").close()
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="looker",
            aws_secret_access_key="on",
        )
        self.client.create_bucket(Bucket="bucket")

    @property
    def options(self) -> tuple[str, ...]:
        """`--store-option` of a run."""
        given = {"endpoint": self.endpoint, "region": "us-east-1", **KEYS}
        return tuple(f"{name}={value}" for name, value in given.items())

    @property
    def storage_options(self) -> dict[str, Any]:
        """fsspec's, for the loader."""
        return {
            "key": KEYS["access_key_id"],
            "secret": KEYS["secret_access_key"],
            "endpoint_url": self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Contents by key below the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix(f"{prefix}/"): self.client.get_object(Bucket="bucket", Key=key)["Body"].read()
            for key in keys
        }

    def upload(self, folder: Path, prefix: str) -> str:
        """A copy of the files of a folder; its URL."""
        for path in folder.iterdir():
            if path.is_file():
                self.client.put_object(Bucket="bucket", Key=f"{prefix}/{path.name}", Body=path.read_bytes())
        return f"s3://bucket/{prefix}"

    def calm(self) -> None:
        self.front.seconds, self.front.answer = 0.0, lambda environ: None
        for seen in (self.front.log, self.front.queries, self.front.ranges):
            seen.clear()

    def close(self) -> None:
        self._server.stop()


def at_random(seed: int, share: float, *answers: str, methods: str = "PUT GET HEAD DELETE") -> Answer:
    """This share of the requests get one of the answers."""
    chance = random.Random(seed)

    def answer(environ: Environ) -> str | None:
        if environ["REQUEST_METHOD"] in methods.split() and chance.random() < share:
            return chance.choice(answers)
        return None

    return answer


@pytest.fixture(scope="module")
def running_store() -> Iterator[FaultyStore]:
    """One for each module."""
    store = FaultyStore()
    yield store
    store.close()


@pytest.fixture
def store(running_store: FaultyStore) -> Iterator[FaultyStore]:
    """Calm at the beginning of each test."""
    running_store.calm()
    yield running_store
    running_store.calm()
