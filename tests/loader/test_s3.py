"""s3:// through fsspec's own client against a server of moto: an outage, a slow answer and a vanished key, as of http."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

import loader.remote
from loader import DataError, FormatError, as_webdataset, make_loader
from loader.transport import FsspecTransport
from tests.support.keyed_shards import FIELDS, write_shards
from tests.support.waiting import wait_until

IMAGE = [field for field in FIELDS if field.name == "moments_256"]
KEYS = {"key": "made", "secret": "up-s3cr3t"}


class Slow:
    """A WSGI application in front of another: each request takes `seconds`, or is refused while `down`."""

    def __init__(self, app: Any) -> None:
        self.app, self.seconds, self.down, self.refused = app, 0.0, False, 0

    def __call__(self, environ: Any, start_response: Any) -> Any:
        time.sleep(self.seconds)
        if self.down:
            self.refused += 1
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadedMotoServer]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("s3") / "a", [10, 10, 10], fields=IMAGE)


@pytest.fixture
def options(
    server: ThreadedMotoServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.3)
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEYS["key"],
        aws_secret_access_key=KEYS["secret"],
    )
    client.create_bucket(Bucket="shards")
    for path in folder.iterdir():
        if path.is_file():
            client.upload_file(str(path), "shards", f"my data/{path.name}")
    yield {**KEYS, "endpoint_url": endpoint, "client_kwargs": {"region_name": "us-east-1"}}
    for found in client.list_objects_v2(Bucket="shards").get("Contents", []):
        client.delete_object(Bucket="shards", Key=found["Key"])
    client.delete_bucket(Bucket="shards")


def keys(path: Any, **more: Any) -> list[str]:
    batches = make_loader(path, 5, extras="key", shuffle_window=10, **more)
    try:
        found = [key for batch in batches for key in batch["key"]]
        assert batches.stats()["substitutes"] == 0
        return found
    finally:
        batches.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_local_one(options: dict[str, Any], folder: Path, workers: int) -> None:
    assert keys("s3://shards/my data", storage_options=options, num_workers=workers) == keys(folder)


def test_an_outage_is_waited_for(
    options: dict[str, Any],
    server: ThreadedMotoServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = server._server
    assert inner is not None
    front = Slow(inner.app)
    monkeypatch.setattr(inner, "app", front)
    batches = make_loader("s3://shards/my data", 5, extras="key", shuffle_window=10, storage_options=options)
    front.down = True
    threading.Timer(3.0, setattr, (front, "down", False)).start()
    begin = time.monotonic()
    assert [key for batch in batches for key in batch["key"]] == keys(folder)
    assert time.monotonic() - begin > 2.5 and front.refused and batches.stats()["substitutes"] == 0
    assert "s3cr3t" not in caplog.text
    batches.close()


def test_a_server_that_is_stopped_and_started_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connections are refused until somebody starts it again: the run goes on, with every sample."""
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.3)
    first = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    first.start()
    host, port = first.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")  # fmt: skip
    client.create_bucket(Bucket="outage")
    for path in folder.iterdir():
        if path.is_file():
            client.upload_file(str(path), "outage", path.name)
    once = {"retries": {"max_attempts": 1}}
    options = {
        **KEYS,
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": once,
    }
    batches = make_loader("s3://outage", 5, extras="key", shuffle_window=10, storage_options=options)
    first.stop()
    again = ThreadedMotoServer(ip_address="127.0.0.1", port=port)

    def start() -> None:
        wait_until(lambda: caplog.text.count("trying again") >= 3)
        again.start()

    starting = threading.Thread(target=start)
    starting.start()
    try:
        assert [key for batch in batches for key in batch["key"]] == keys(folder)
        stats = batches.stats()
        assert stats["substitutes"] == 0 and stats["retries"] >= 3
    finally:
        batches.close()
        starting.join()
        again.stop()


def test_a_slow_answer_is_waited_for(
    options: dict[str, Any], server: ThreadedMotoServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = server._server
    assert inner is not None
    front = Slow(inner.app)
    front.seconds = 0.3
    monkeypatch.setattr(inner, "app", front)
    assert keys("s3://shards/my data", storage_options=options) == keys(folder)


def test_a_manifest_that_is_another_after_each_request_is_read_as_it_was_at_one(
    options: dict[str, Any],
    server: ThreadedMotoServer,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A manifest that grows is so; and one without a byte is no manifest, at once."""
    client = boto3.client("s3", endpoint_url=options["endpoint_url"], region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")  # fmt: skip
    inner, place = server._server, {"Bucket": "shards", "Key": "my data/manifest.json"}
    assert inner is not None
    app, asked, manifest = inner.app, list[str](), (folder / "manifest.json").read_bytes()

    def grows(environ: Any, start_response: Any) -> Any:
        answer = app(environ, start_response)
        if environ["PATH_INFO"].endswith("manifest.json") and environ["REQUEST_METHOD"] != "PUT":
            asked.append(environ["REQUEST_METHOD"])
            client.put_object(**place, Body=manifest + b" " * len(asked))
        return answer

    monkeypatch.setattr(inner, "app", grows)
    assert keys("s3://shards/my data", storage_options=options) == keys(folder)
    assert asked == ["GET"] and "trying again" not in caplog.text
    monkeypatch.setattr(inner, "app", app)
    client.put_object(**place, Body=b"")
    with pytest.raises(FormatError, match=r"manifest\.json: "):
        keys("s3://shards/my data", storage_options=options)
    assert "trying again" not in caplog.text


def test_a_key_that_vanished_is_replaced_and_counted(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    client = boto3.client("s3", endpoint_url=options["endpoint_url"], region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")  # fmt: skip
    client.delete_object(Bucket="shards", Key="my data/train-00001.tar")
    batches = make_loader("s3://shards/my data", 5, extras="key", storage_options=options)
    assert sum(len(batch["key"]) for batch in batches) == 30
    assert batches.stats()["substitutes"] == 10
    assert "train-00001" in caplog.text
    batches.close()


def test_a_server_that_is_gone_ends_after_the_patience(options: dict[str, Any]) -> None:
    with pytest.raises((TimeoutError, DataError), match="nothing arrived for"):
        make_loader("s3://shards/my data", 5, storage_options={**options, "endpoint_url": "http://127.0.0.1:9"}, patience=0.5)  # fmt: skip


def test_errors_of_boto_pass_unless_no_waiting_mends_them(options: dict[str, Any]) -> None:
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError

    transport = FsspecTransport("s3://shards/my data", options)
    passing = transport.meaning(EndpointConnectionError(endpoint_url="https://user:pw@host/?sig=1"))
    assert (
        type(passing) is loader.remote.Interrupted and "pw" not in str(passing) and "sig" not in str(passing)
    )
    assert isinstance(transport.meaning(NoCredentialsError()), PermissionError)


def test_webdataset_reads_it_too(options: dict[str, Any], folder: Path) -> None:
    found = [sample["__key__"] for sample in as_webdataset("s3://shards/my data", storage_options=options)]
    assert found == keys(folder, shuffle=False) and len(found) == 30


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import known_implementations

    monkeypatch.setitem(
        known_implementations,
        "made-up",
        {"class": "no_such_package.X", "err": "Install no_such_package to read made-up://"},
    )
    for read in (lambda: make_loader("made-up://a/b", 5), lambda: as_webdataset("made-up://a/b")):
        with pytest.raises(ValueError, match=r"made-up://a/b: Install no_such_package.*pip install"):
            read()


def test_options_that_do_not_fit_are_an_error_at_once() -> None:
    with pytest.raises((ValueError, OSError), match="storage_options"):
        make_loader("s3://shards/x", 5, storage_options={"no_such_option": 1}, patience=5)
