"""Files above what a store takes in one request, made small: whole, created and never written over, no part left behind."""

import random
from pathlib import Path
from typing import Any

import pytest

from precompute import run
from precompute.cloud import client, multipart
from precompute.cloud.client import Client
from precompute.cloud.output_store import OutputStore
from precompute.cloud.trouble import StoreError
from precompute.errors import UsageError
from tests.precompute.cloud.test_output_store import marker_of
from tests.precompute.cloud.test_store_runs import check, config, data, plain, quick  # noqa: F401  fixtures
from tests.support.faulty_store import FaultyStore, at_random

MB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tars are too large for one request; S3 takes no part of less than 5 MiB but the last."""
    monkeypatch.setattr(client, "USUAL", 16_000)
    monkeypatch.setattr(multipart, "PART", 5 * MB)


def opened(store: FaultyStore, prefix: str) -> Client:
    return Client.open("--output", f"s3://bucket/{prefix}", store.options)


def uploads(store: FaultyStore, prefix: str) -> list[str]:
    found = store.client.list_multipart_uploads(Bucket="bucket", Prefix=f"{prefix}/")
    return [upload["Key"] for upload in found.get("Uploads", [])]


def test_a_run_is_a_plain_one(store: FaultyStore, data: Path, plain: Path, quick: None) -> None:  # noqa: F811
    """While the store refuses, loses replies and does things twice."""
    store.front.answer = at_random(3, 0.1, "503 SlowDown", "lost", "twice", "409 ConditionalRequestConflict")
    run.run(config("s3://bucket/large/run", data, store_option=store.options, lease_timeout=600.0))
    assert any("uploadId=" in query for query in store.front.queries)
    store.calm()
    check(store, "large/run", plain)


@pytest.mark.parametrize(("most", "parts"), [(10_000, 3), (2, 2)])
def test_parts_make_the_whole_and_nothing_is_written_over(
    store: FaultyStore,
    quick: None,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    parts: int,
) -> None:
    """They are larger where there would be more of them than S3 takes."""
    monkeypatch.setattr(multipart, "MOST", most)
    body, before = random.Random(0).randbytes(11 * MB), len(store.front.queries)
    store.client.delete_object(Bucket="bucket", Key="parts/train-00000.tar")
    place = opened(store, "parts")
    assert place.create("train-00000.tar", memoryview(body)) is not None
    sent = sum("partNumber=" in query for query in store.front.queries[before:])
    assert sent == parts + 1, "and the trial's"
    assert store.objects("parts") == {"train-00000.tar": body}
    assert place.create("train-00000.tar", memoryview(body)) is not None, "an equal one counts as ours"
    assert place.create("train-00000.tar", memoryview(body[::-1])) is None
    assert store.objects("parts") == {"train-00000.tar": body} and not uploads(store, "parts")


@pytest.mark.parametrize("answer", ["403 AccessDenied", "400 ExpiredToken"])
def test_what_breaks_off_leaves_no_part(store: FaultyStore, answer: str) -> None:
    place, body = opened(store, "off"), bytes(6 * MB)
    assert place.create("a.tar", memoryview(bytes(20_000))) is not None
    store.front.answer = lambda environ: answer if "partNumber=2" in environ["QUERY_STRING"] else None
    with pytest.raises(StoreError, match="--output s3://bucket/off: the credentials"):
        place.create("train-00000.tar", memoryview(body))
    assert not uploads(store, "off") and list(store.objects("off")) == ["a.tar"]
    store.client.delete_object(Bucket="bucket", Key="off/a.tar")


def test_what_a_killed_process_left_goes_with_its_unit(store: FaultyStore, tmp_path: Path) -> None:
    for name in ("train-00000.tar", "train-00000-02.tar", "train-000000.tar", "train-00001.tar"):
        store.client.create_multipart_upload(Bucket="bucket", Key=f"killed/{name}")
    place = OutputStore(opened(store, "killed"), "train", tmp_path)
    begun = place.begin("train-00000", "2-me")
    (begun / "0.tar").write_bytes(bytes(20_000))
    name = place.publish({".tar": begun / "0.tar"}, "train-00000")
    place.mark("train-00000", marker_of([name], "me").to_json().encode(), {f"{name}.tar"}, begun)
    place.close()
    assert sorted(uploads(store, "killed")) == ["killed/train-000000.tar", "killed/train-00001.tar"]


def test_a_store_that_looks_at_no_condition_there(store: FaultyStore) -> None:
    place = opened(store, "deaf")
    deaf: Any = lambda environ: "deaf" if environ["REQUEST_METHOD"] == "POST" else None  # noqa: E731
    store.front.answer = deaf
    for _ in range(2):
        with pytest.raises(UsageError, match=r"for files above 5 GB. Give a smaller --samples-per-shard"):
            place.create("train-00000.tar", memoryview(bytes(20_000)))
    store.calm()
    assert not store.objects("deaf") and not uploads(store, "deaf")
    with pytest.raises(UsageError, match=r"a file of .* GB; this store takes 0 GB in one request"):
        Client.open("--output", "az://container/x", ["account_name=a", "account_key=YQ=="]).create(
            "train-00000.tar", memoryview(bytes(20_000))
        )
