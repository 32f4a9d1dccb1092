"""What cannot be, with a store: one line that names the flag and the cure, before any work, and no value of an option in it."""

import errno
import os
import sys
from pathlib import Path

import pytest

from builders.archives import backoff
from precompute import make, run
from precompute.shards.tar_writer import TarWriter
from tests.precompute.cloud.test_store_reading import command
from tests.support.faulty_store import KEYS, FaultyStore
from tests.support.finished_folder import write_shards
from tests.support.launching import TOY


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
    monkeypatch.setattr(backoff.Patience, "wait", lambda *arguments: False)

    def run_and_fail(output: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["run.py", "builders/demo", "--output", output, *TOY, *arguments])
        with pytest.raises(SystemExit) as stopped:
            run.main()
        assert stopped.value.code in (1, 2)
        told = capsys.readouterr()
        assert told.err.startswith("error: ") and told.err.count("\n") == 1 and "Traceback" not in told.err
        assert not list(tmp_path.iterdir()), "no folder was made in its place"
        return told.err

    return run_and_fail


def with_options(store: FaultyStore, **more: str) -> list[str]:
    given = {**dict(option.split("=", 1) for option in store.options), **more}
    return [word for name, value in given.items() for word in ("--store-option", f"{name}={value}")]


@pytest.mark.parametrize(
    "output, expected",
    [
        ("s3:", "give bucket and prefix, as in s3://BUCKET/PREFIX"),
        ("s3://bucket", "give bucket and prefix"),
        ("s3:/bucket/prefix", "give bucket and prefix"),
        ("s4://bucket/prefix", "no store of that name. Give a folder, or one of s3://BUCKET/PREFIX"),
        ("memory://bucket/prefix", "no store of that name"),
        ("hf://buckets/user/name", "the Hub has no conditional writes"),
    ],
)
def test_a_url_that_is_none_of_ours(fail, output: str, expected: str) -> None:
    error = fail(output)
    assert f"--output {output}: " in error and expected in error


def test_flags_that_do_not_go_together(fail, store: FaultyStore) -> None:
    flags = ("--push-to", "a/b", "--delete-pushed", "--max-disk", "1")
    assert "--max-disk 1: a store does not fill up" in fail("s3://bucket/x", *flags)
    assert "--scratch here: only with a store" in fail("out", "--scratch", "here")
    assert "--scratch s3:/bucket/y: a URL" in fail("s3://bucket/x", "--scratch", "s3://bucket/y")
    assert "--store-option: only with a store" in fail("out", "--store-option", "region=auto")
    error = fail("s3://bucket/x", *with_options(store, colour="red"))
    assert "--store-option colour=...: no such option" in error and "red" not in error
    assert "give NAME=VALUE" in fail("s3://bucket/x", "--store-option", "s3cr3t")
    assert not store.front.log, "before any request"


@pytest.mark.parametrize(
    "verb, arguments, expected",
    [
        ("pack", ["--output", "out", "--scratch", "here"], "--scratch here: only with a store"),
        ("push", ["me/x", "--scratch", "here"], "--scratch here: only with a store"),
        ("preview", ["--to", "s3://bucket/x"], "--to s3:/bucket/x: a URL; name a folder on a disk here"),
        ("select", ["--output", "s3://bucket/kept.parquet"], "--output s3:/bucket: a URL; name a folder"),
    ],
)
def test_a_flag_for_another_kind_of_place(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    verb: str,
    arguments: list[str],
    expected: str,
) -> None:
    write_shards(tmp_path / "latents")
    monkeypatch.chdir(tmp_path)
    code, told = command(monkeypatch, capsys, verb, "latents", *arguments)
    assert code == 2 and told.startswith(f"error: {expected}") and told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def test_make_writes_to_folders(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["make.py", "micro_budget", "--latents", "s3://bucket/x", "--small"])
    with pytest.raises(SystemExit) as stopped, pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "run", lambda step: pytest.fail(f"{step} was run"))
        make.main()
    assert stopped.value.code == 2
    assert "error: --latents s3:/bucket/x: a URL, and make writes to folders" in capsys.readouterr().err


def test_a_scratch_that_is_full_is_named(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def full(self: TarWriter, data: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TarWriter, "put", full)
    monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
    words = ["--output", "s3://bucket/full", "--scratch", str(tmp_path), *with_options(store), *TOY]
    monkeypatch.setattr("sys.argv", ["run.py", "builders/demo", "--limit", "4", *words])
    with pytest.raises(SystemExit) as stopped:
        run.main()
    told = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1 and told.startswith(f"error: --scratch {tmp_path}: ")
    assert "No space left on device. Nothing finished is lost: mend that, or name a larger disk," in told
    assert not list(tmp_path.iterdir())


def test_a_missing_extra(fail, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("client", "output_store"):
        monkeypatch.delitem(sys.modules, f"precompute.cloud.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert "run `pip install 'latentmill[cloud]'`" in fail("s3://bucket/x")


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("400 ExpiredToken", "the credentials have expired. Renew them"),
        ("403 InvalidAccessKeyId", "the credentials are not accepted. Check"),
        ("403 AccessDenied", "give no right to this (AccessDenied). They must read, write, delete and list"),
        ("503 SlowDown", "(SlowDown). Nothing finished is lost"),
        ("501 NotImplemented", "no conditional writes"),
        ("deaf", "no conditional writes (If-None-Match, If-Match), by which processes meet"),
    ],
)
def test_a_store_that_will_not(fail, store: FaultyStore, answer: str, expected: str) -> None:
    store.front.answer = lambda environ: answer
    error = fail("s3://bucket/x", *with_options(store))
    assert "--output s3://bucket/x: " in error and expected in error
    assert not any(value in error for value in KEYS.values())
    store.calm()
    assert answer != "deaf" or not store.objects("x"), "nothing of the trial is left"


def test_a_missing_bucket_and_a_server_that_is_none(fail, store: FaultyStore) -> None:
    assert "there is no such bucket. Make it" in fail("s3://none/x", *with_options(store))
    error = fail("s3://bucket/x", *with_options(store, endpoint="http://127.0.0.1:9"))
    assert "error sending request" in error
