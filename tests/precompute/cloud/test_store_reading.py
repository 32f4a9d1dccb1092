"""verify, preview, pack, select and bench on shards in a store: what they say of a folder, by ranges and streams."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builders.archives import backoff
from loader import bench
from precompute import choose, pack, preview, run, verify
from precompute.errors import UsageError
from tests.support.faulty_store import KEYS, FaultyStore
from tests.support.launching import tars
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

UNITS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for unit in range(UNITS):
        members: list[tuple[str, bytes]] = []
        for row in range(8):
            key = f"{unit}{row}"
            picture = b"<html>" if row == 2 else jpeg(8 * unit + row, (256, 256))
            members += [(f"{key}.jpg", picture), (f"{key}.txt", f"caption {key}".encode())]
        write_tar(folder / f"{unit:05d}.tar", members)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    output = tmp_path_factory.mktemp("made") / "out"
    toy: dict[str, Any] = {"vae": "toy", "text_encoder": ("toy",), "dtype": "float32"}
    run.run(
        run.Config("builders/webdataset", output, data_dir=data, resolutions=(256,), num_threads=1, **toy)
    )
    return output


@pytest.fixture(scope="module")
def url(running_store: FaultyStore, folder: Path) -> str:
    return running_store.upload(folder, "made/out")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second try is at once, and the last."""

    def wait(self: backoff.Patience, what: str, asked: str | None = None) -> bool:
        self._spent += 1
        return self._spent < 2

    monkeypatch.setattr(backoff.Patience, "wait", wait)


def verified(
    capsys: pytest.CaptureFixture[str], output: str | Path, **flags: Any
) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = verify.run(verify.Config(str(output), json=True, num_threads=2, **flags))
    told = capsys.readouterr()
    assert not any(value in told.out + told.err for value in KEYS.values())
    report = json.loads(told.out)
    return code, {name: value for name, value in report.items() if name not in ("output", "seconds")}


@pytest.mark.parametrize("flags", [{}, {"quick": True}, {"decode": 4}], ids=["bytes", "quick", "decode"])
def test_verify_says_what_it_says_of_the_folder(
    store: FaultyStore,
    folder: Path,
    url: str,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    flags: dict[str, Any],
) -> None:
    more = {**flags, "data_dir": data} if "decode" in flags else flags
    local = verified(capsys, folder, **more)
    assert verified(capsys, url, store_option=store.options, **more) == local
    assert local[0] == 0 and local[1]["whole"]
    assert sum("list-type" in query for query in store.front.queries) <= 2, "one listing, of one page"


def damage(objects: dict[str, bytes], name: str) -> bytes:
    data = bytearray(objects[name])
    data[len(data) // 2] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "name", ["train-00001.tar", "train-00001.parquet", "train-00001.json", "manifest.json"]
)
def test_damage_is_what_it_is_in_a_folder(
    store: FaultyStore, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    whole = {path.name: path.read_bytes() for path in copy.iterdir()}
    (copy / name).write_bytes(damage(whole, name))
    url = store.upload(copy, f"damaged/{name}")
    local, there = verified(capsys, copy), verified(capsys, url, store_option=store.options)
    (note,) = there[1].pop("notes")
    assert local[0] == 1 and local[1].pop("notes") == [] and there == local
    assert f"`aws s3 rm {url}/NAME --endpoint-url {store.endpoint}`" in note


def of(name: str, answer: str) -> Callable[[dict[str, Any]], str | None]:
    """The answer to whoever asks for this file."""
    return lambda environ: answer if environ["PATH_INFO"].endswith(name) else None


@pytest.mark.parametrize(
    "name, answer",
    [
        ("train-00001.tar", "503 SlowDown"),
        ("train-00001.tar", "404 NoSuchKey"),
        ("train-00001.tar", "cut"),
        ("train-00001.parquet", "403 AccessDenied"),
        ("train-00001.json", "400 ExpiredToken"),
        ("manifest.json", "cut"),
    ],
)
def test_what_cannot_be_read_is_no_damage(
    store: FaultyStore, url: str, impatient: None, capsys: pytest.CaptureFixture[str], name: str, answer: str
) -> None:
    """No cure that would remove anything."""
    store.front.answer = of(name, answer)
    code, report = verified(capsys, url, store_option=store.options)
    assert code == 3, report["findings"]
    assert all(finding["unread"] and "remove" not in finding["cure"] for finding in report["findings"])
    assert f"could not be read ({url}" in report["findings"][0]["what"]


def test_an_answer_that_breaks_off_goes_on_where_it_was(
    store: FaultyStore, url: str, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    left = iter(range(3))
    cut = of(".tar", "cut")
    store.front.answer = lambda environ: cut(environ) if next(left, None) is not None else None
    assert verified(capsys, url, store_option=store.options)[0] == 0


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("400 ExpiredToken", "the credentials have expired. Renew them"),
        ("403 AccessDenied", "no right to this (AccessDenied). They must read"),
        ("503 SlowDown", "503 Service Unavailable (SlowDown). "),
        ("404 NoSuchBucket", "there is no such bucket"),
    ],
)
@pytest.mark.parametrize("verb", ["verify", "preview", "push"])
def test_what_cannot_be_listed_is_one_line(
    store: FaultyStore,
    url: str,
    impatient: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    answer: str,
    expected: str,
) -> None:
    store.front.answer = lambda environ: answer
    code, told = command(monkeypatch, capsys, verb, url, *(["me/x"] if verb == "push" else []), *words(store))
    assert code == (1 if verb == "push" else 3)
    assert told.startswith(f"error: {url}: ") and expected in told and told.count("\n") == 1
    assert not any(value in told for value in KEYS.values())


def words(store: FaultyStore) -> list[str]:
    return [word for option in store.options for word in ("--store-option", option)]


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, *arguments: str
) -> tuple[int, str]:
    """Exit code and what the command says on stderr."""
    modules = {"verify": verify, "preview": preview, "pack": pack, "select": choose, "bench": bench}
    if verb == "push":
        from precompute import push

        modules["push"] = push
    monkeypatch.setattr(sys, "argv", [verb, *arguments])
    capsys.readouterr()
    try:
        modules[verb].main()
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            return 1, stopped.code
        return stopped.code or 0, capsys.readouterr().err
    return 0, capsys.readouterr().err


def test_a_place_without_shards(store: FaultyStore, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UsageError, match=r"s3://bucket/nothing: no shards there .* Name the --output of a run"
    ):
        verify.run(verify.Config("s3://bucket/nothing", store_option=store.options))
    with pytest.raises(UsageError, match="--store-option: only with a store"):
        verify.run(verify.Config("latents", store_option=store.options))


def test_preview_reads_what_it_shows(
    store: FaultyStore, folder: Path, url: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same pictures, out of ranges of the tars."""
    with pytest.raises(UsageError, match="--to: name a folder"):
        preview.run(preview.Config(url, store_option=store.options))
    given: dict[str, Any] = {"num_samples": 2, "data_dir": data}
    preview.run(preview.Config(str(folder), to=tmp_path / "a", **given))
    store.front.log.clear()
    preview.run(preview.Config(url, to=tmp_path / "b", store_option=store.options, **given))
    sheets = [(tmp_path / name / "preview.png").read_bytes() for name in "ab"]
    assert sheets[0] == sheets[1]
    ranges = [r for path, r in store.front.ranges if path.endswith(".tar")]
    assert ranges and all(ranges), "no tar is read whole"


def test_pack_from_a_store_to_a_store(
    store: FaultyStore, folder: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    given: dict[str, Any] = {"shuffle": 3, "samples_per_shard": 4, "where": "key <> '11'"}
    pack.run(pack.Config((str(folder),), tmp_path / "local", **given))
    there = pack.Config((url,), "s3://bucket/packed/x", scratch=scratch, store_option=store.options, **given)
    pack.run(there)
    pack.run(there)
    found = store.objects("packed/x")
    assert {name: found[name] for name in found if name.endswith(".tar")} == tars(tmp_path / "local")
    manifest = (tmp_path / "local" / "manifest.json").read_bytes()
    assert found["manifest.json"] == manifest
    assert not list(scratch.iterdir()) and not [name for name in found if name.startswith(".work")]
    pack.run(pack.Config((url,), tmp_path / "down", store_option=store.options, **given))
    assert tars(tmp_path / "down") == tars(tmp_path / "local")


def test_select_and_bench_read_there(
    store: FaultyStore,
    folder: Path,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    local = choose.count_chosen(choose.Config(str(folder), where="width >= 256"))
    assert choose.count_chosen(choose.Config(url, where="width >= 256", store_option=store.options)) == local
    monkeypatch.setattr(sys, "argv", ["bench", url, "--seconds", "0.1", "--batch-size", "4", *words(store)])
    bench.main()
    told = capsys.readouterr()
    assert "samples/s" in told.out and not any(value in told.out + told.err for value in KEYS.values())
    wrong = ["--store-option", "colour=s3cr3t"]
    code, said = command(monkeypatch, capsys, "bench", url, *wrong)
    assert (
        code == 1 and said.startswith("--store-option colour=...: to read, one of ") and "s3cr3t" not in said
    )
    assert command(monkeypatch, capsys, "select", "latents", *wrong)[0] == 2
