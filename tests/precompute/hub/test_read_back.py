"""What was pushed is what others read: `datasets`, `snapshot_download`, verify.py and our loader, each in its own process."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loader import as_webdataset
from precompute import run
from tests.support.finished_folder import write_shards
from tests.support.fork_server import ForkServer
from tests.support.launching import tars
from tests.support.loopback_hub import LoopbackHub
from tests.support.waiting import wait_until

ROOT = Path(run.__file__).parents[1]
REPO, IN_FOLDERS = "owner/demo-latents", "owner/demo-in-folders"
both = pytest.mark.parametrize("repo", [REPO, IN_FOLDERS])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's photographs, precomputed."""
    output = tmp_path_factory.mktemp("demo") / "latents"
    toys: dict[str, Any] = {"vae": "toy", "text_encoder": ("toy",), "dtype": "float32", "resolutions": (64,)}
    run.run(run.Config("builders/demo", output, **toys))
    return output


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


# What the commands and programs import, at whose import the Hub's client reads where the Hub is.
PRELOADED = ["datasets", *(f"precompute.{name}" for name in ("run", "verify", "preview", "push"))]


@pytest.fixture(scope="module")
def forks(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with ForkServer(PRELOADED, environment(hub, tmp_path_factory.mktemp("home"))) as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub: LoopbackHub, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> LoopbackHub:
    """A Hub that has the demo, put there by the command; and again, as if it had too many units for one folder."""
    done = python(hub, tmp_path_factory.mktemp("home"), "precompute/push.py", str(demo), REPO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.url}/datasets/{REPO}"
    program = "from precompute import push; from precompute.shards import store; store.UNITS = 2; push.main()"
    done = python(hub, tmp_path_factory.mktemp("home"), "-c", program, str(demo), IN_FOLDERS)
    assert done.returncode == 0, done.stderr
    assert {"train/0000/train-00001.tar", "train/0001/train-00002.tar"} < set(hub.repos[IN_FOLDERS].files())
    return hub


def environment(hub: LoopbackHub, home: Path, token: str | None = "hf_owner") -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    hf = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {
        **kept,
        **hf,
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        **({"HF_TOKEN": token} if token else {}),
    }


def python(
    hub: LoopbackHub, home: Path, *arguments: str, token: str | None = "hf_owner"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(hub, home, token),
        capture_output=True,
        text=True,
        timeout=300,
    )


def forked(
    forks: ForkServer, home: Path, *arguments: str, token: str | None = "hf_owner"
) -> subprocess.CompletedProcess[str]:
    """Run a script as `python` does, with what was downloaded before at hand."""
    environment = {**forks.environment, "HOME": str(home)}
    if token is None:
        del environment["HF_TOKEN"]
    else:
        environment["HF_TOKEN"] = token
    return forks.run(*arguments, cwd=ROOT, environment=environment)


def answer(forks: ForkServer, home: Path, program: str, token: str | None = None) -> Any:
    """What a program prints, as JSON."""
    done = forked(forks, home, "-c", textwrap.dedent(program), token=token)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def keys_of(folder: Path) -> list[str]:
    keys: dict[str, None] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            keys.update(dict.fromkeys(name.partition(".")[0] for name in tar.getnames()))
    return list(keys)


@pytest.mark.parametrize(("repo", "streaming"), [(REPO, True), (REPO, False), (IN_FOLDERS, True)])
def test_load_dataset_reads_the_samples(
    pushed: LoopbackHub, forks: ForkServer, demo: Path, tmp_path: Path, repo: str, streaming: bool
) -> None:
    program = f"""
    import json
    from datasets import load_dataset
    rows = list(load_dataset({repo!r}, split="train", streaming={streaming}))
    print(json.dumps([[row["__key__"], row["txt"], sum(map(len, row["moments_64.npy"][0]))] for row in rows]))
    """
    rows = answer(forks, tmp_path, program)
    assert [row[0] for row in rows] == keys_of(demo) and all(row[1] for row in rows)
    assert {row[2] for row in rows} == {8 * 8}


def test_snapshot_download_gives_the_same_files(
    pushed: LoopbackHub, forks: ForkServer, demo: Path, tmp_path: Path
) -> None:
    program = f"""
    import json
    from huggingface_hub import snapshot_download
    print(json.dumps(snapshot_download({REPO!r}, repo_type="dataset", local_dir={str(tmp_path / "copy")!r})))
    """
    copy = Path(answer(forks, tmp_path, program))
    for path in demo.iterdir():
        if path.is_file():
            assert (copy / path.name).read_bytes() == path.read_bytes()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves tars open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_snapshot_in_folders_is_read_as_any_folder(
    pushed: LoopbackHub, forks: ForkServer, demo: Path, tmp_path: Path
) -> None:
    program = f"""
    import json
    from huggingface_hub import snapshot_download
    print(json.dumps(snapshot_download({IN_FOLDERS!r}, repo_type="dataset", local_dir={str(tmp_path / "copy")!r})))
    """
    copy = answer(forks, tmp_path, program)
    assert read_by_loader(forks, tmp_path, copy) == read_by_loader(forks, tmp_path, str(demo))
    assert [sample["__key__"] for sample in as_webdataset(copy)] == keys_of(demo)
    done = forked(forks, tmp_path, "precompute/verify.py", copy)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_layer_is_made_beside_the_hubs_copy_and_pushed(
    pushed: LoopbackHub, forks: ForkServer, demo: Path, tmp_path: Path
) -> None:
    base, layer = f"hf://datasets/{IN_FOLDERS}", str(tmp_path / "layer")
    flags = ["--text-encoder", "second=toy", "--dtype", "float32"]
    for command in (
        ["precompute/run.py", "--beside", base, "--output", layer, *flags],
        ["precompute/verify.py", layer, "--beside", base],
        ["precompute/push.py", layer, "owner/demo-second"],
    ):
        done = forked(forks, tmp_path, *command)
        assert done.returncode == 0, done.stdout + done.stderr
    run.run(
        run.Config(output=tmp_path / "here", beside=str(demo), text_encoder=("second=toy",), dtype="float32")
    )
    assert tars(tmp_path / "here") == tars(Path(layer))
    program = f"""
    import json
    from loader import make_loader
    batches = make_loader(({base!r}, "hf://datasets/owner/demo-second"), 5, extras=["key"], text_encoders=["second"])
    print(json.dumps(sorted(key for batch in batches for key in batch["key"])))
    """
    assert answer(forks, tmp_path, program) == sorted(keys_of(demo))


@both
@pytest.mark.parametrize("flags", [["--quick"], [], ["--decode", "20", "--source", "builders/demo"]])
def test_verify_finds_the_hubs_copy_whole(
    pushed: LoopbackHub, forks: ForkServer, tmp_path: Path, repo: str, flags: list[str]
) -> None:
    done = forked(forks, tmp_path, "precompute/verify.py", f"hf://datasets/{repo}", *flags, token=None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "whole. 20 written + 2 rejected = 22 rows" in done.stdout


def test_a_quick_look_at_the_hub_reads_no_tar(pushed: LoopbackHub, tmp_path: Path) -> None:
    before = pushed.asked("GET", r"/resolve/.*\.(tar|parquet)")
    python(pushed, tmp_path, "precompute/verify.py", f"hf://datasets/{REPO}", "--quick", token=None)
    assert pushed.asked("GET", r"/resolve/.*\.(tar|parquet)") == before


@both
def test_preview_of_the_hubs_copy(pushed: LoopbackHub, forks: ForkServer, tmp_path: Path, repo: str) -> None:
    done = forked(
        forks, tmp_path, "precompute/preview.py", f"hf://datasets/{repo}", "--to", str(tmp_path / "seen")
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen" / "report.html").stat().st_size > 10_000


def test_damage_on_the_hub_is_found(pushed: LoopbackHub, forks: ForkServer, tmp_path: Path) -> None:
    files = pushed.repos[REPO].files()
    pushed.repos["owner/damaged"] = type(pushed.repos[REPO])()
    pushed.repos["owner/damaged"].commit(
        "main", {**files, "train-00001.tar": files["train-00000.tar"]}, "damage"
    )
    for flags in ([], ["--quick"]):
        done = forked(
            forks, tmp_path, "precompute/verify.py", "hf://datasets/owner/damaged", "--json", *flags
        )
        shards = {finding["shard"] for finding in json.loads(done.stdout)["findings"]}
        assert done.returncode == 1 and shards == {"train-00001"}


def read_by_loader(forks: ForkServer, home: Path, source: str) -> Any:
    """Keys in their order, and a hash of all arrays."""
    program = f"""
    import hashlib, json
    from loader import make_loader
    batches = make_loader({source!r}, batch_size=5, resolution=64, seed=3, extras=("key", "caption"))
    digest, keys = hashlib.sha256(), []
    for batch in batches:
        keys += batch["key"]
        digest.update(batch["image_latents"].numpy().tobytes() + batch["caption_latents"].numpy().tobytes())
    print(json.dumps([keys, digest.hexdigest()]))
    """
    return answer(forks, home, program)


@both
def test_our_loader_reads_the_hubs_copy(
    pushed: LoopbackHub, forks: ForkServer, demo: Path, tmp_path: Path, repo: str
) -> None:
    local = read_by_loader(forks, tmp_path, str(demo))
    remote = read_by_loader(forks, tmp_path, f"hf://datasets/{repo}")
    assert remote == local and len(local[0]) == 20


def test_a_push_killed_half_way_is_finished_by_the_next(tmp_path: Path) -> None:
    """kill -9 while files go up, then the same command: all is there, and what had gone up is not sent again."""
    shards = write_shards(tmp_path / "latents", units=8, samples=2)
    with LoopbackHub() as hub:
        command = [sys.executable, "precompute/push.py", str(shards), REPO]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(hub, tmp_path), stderr=subprocess.DEVNULL
        )
        wait_until(lambda: hub.asked("PUT", "/lfs/") >= 3 or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
        process.wait()
        sent = set(hub.objects)
        uploads = hub.asked("PUT", "/lfs/")
        done = python(hub, tmp_path, "precompute/push.py", str(shards), REPO)
        assert done.returncode == 0, done.stderr
        files = hub.repos[REPO].files()
        assert all(files[path.name].data == path.read_bytes() for path in shards.iterdir() if path.is_file())
        assert hub.asked("PUT", "/lfs/") - uploads <= 16 - len(sent) + 1


@pytest.mark.parametrize(
    ("token", "said"), [(None, "no token"), ("hf_reader", "may not write"), ("hf_x", "does not accept")]
)
def test_the_command_fails_in_one_line(
    forks: ForkServer, demo: Path, tmp_path: Path, token: str | None, said: str
) -> None:
    done = forked(forks, tmp_path, "precompute/push.py", str(demo), "owner/other", token=token)
    assert done.returncode == 1 and said in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: owner/other: ")
