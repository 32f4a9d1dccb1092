"""A cache folder that other users may write to: no link is followed, nothing is believed, nothing is readable by others."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import loader.trust
from loader import make_loader
from loader.cache import Cache
from tests.support.calls import Calls
from tests.support.faulty_server import serve
from tests.support.keyed_shards import FIELDS, write_shards

IMAGE = [field for field in FIELDS if field.name == "moments_256"]
DATA = b"abc" * 100
NAME = hashlib.sha256(DATA).hexdigest()


def put(cache: Cache) -> bytes:
    descriptor = cache.open(NAME, len(DATA), "x", lambda part: (part.clear(), part.add(DATA))[1])
    try:
        return os.pread(descriptor, 1000, 0)
    finally:
        os.close(descriptor)


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("name", ["room.lock", f"files/{NAME}.300.part", f"files/{NAME}"])
def test_a_link_laid_there_is_not_followed(tmp_path: Path, precious: Path, name: str, link: Any) -> None:
    (tmp_path / "cache" / "files").mkdir(parents=True)
    link(precious, tmp_path / "cache" / name)
    cache = Cache(tmp_path / "cache", 10_000)
    try:
        assert put(cache) == DATA
    except OSError as error:
        assert "remove it" in str(error) and name.split("/")[-1] in str(error)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("kind", ["fifo", "folder"])
@pytest.mark.parametrize("name", ["room.lock", f"files/{NAME}.300.part", f"files/{NAME}"])
def test_what_is_no_file_blocks_nobody(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "cache" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    with pytest.raises(OSError, match="remove it"):
        put(Cache(tmp_path / "cache", 10_000))


def test_files_and_folders_are_for_their_user_alone(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "a", [5, 5], fields=IMAGE)
    limit = 10 * (folder / "train-00000.tar").stat().st_size
    with serve(folder) as server:
        batches = make_loader(server.url, 5, cache_dir=tmp_path / "home" / "c", cache_limit=limit)
        assert len(list(batches)) == 2
        batches.close()
    found = [tmp_path / "home" / "c", *(tmp_path / "home" / "c").rglob("*")]
    assert len(found) >= 6
    for path in found:
        assert path.stat().st_mode & 0o777 in ((0o700,) if path.is_dir() else (0o600, 0o400)), path


@pytest.mark.parametrize("whose", ["folder others write to", "file others write to", "other user"])
def test_what_others_may_have_laid_is_hashed_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, whose: str
) -> None:
    files = tmp_path / "cache" / "files"
    files.mkdir(parents=True, mode=0o700)
    (files / NAME).write_bytes(b"x" * len(DATA))
    (files / NAME).chmod(0o666 if whose.startswith("file") else 0o600)
    if whose.startswith("folder"):
        files.chmod(0o777)
    if whose == "other user":
        if os.geteuid():
            pytest.skip("only root can give files away")
        os.chown(files / NAME, 12345, 12345)
    assert put(Cache(tmp_path / "cache", None)) == DATA
    assert "is not what its name says" in caplog.text


def test_a_part_of_another_user_is_not_written_to(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    files = tmp_path / "cache" / "files"
    files.mkdir(parents=True, mode=0o777)
    part = files / f"{NAME}.{len(DATA)}.part"
    part.write_bytes(DATA)
    os.chown(part, 12345, 12345)
    theirs = part.open("r+b")
    assert put(Cache(tmp_path / "cache", None)) == DATA
    theirs.write(b"evil")
    theirs.close()
    assert (files / NAME).read_bytes() == DATA and (files / NAME).stat().st_uid == 0


PROGRAM = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import loader.trust
from loader import make_loader
loaders = [make_loader(sys.argv[1], 10, resolution=256) for _ in range(5)]
for batches in loaders:
    assert sum(len(batch["image_latents"]) for batch in batches) == 240
    assert batches.stats()["substitutes"] == 0
print(len(os.listdir("/proc/self/fd")))
"""


def test_five_loaders_fit_in_256_descriptors(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "many", [2] * 120, fields=IMAGE, rejected=0)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder],
        cwd=Path(__file__).parents[2],
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 128 and resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_cache_that_may_be_read_alone_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Root may write anywhere, so the refusal is made up. What has to be fetched is synced before it gets its name."""
    put(Cache(tmp_path / "cache", None))
    real = loader.trust.open_private

    def refused(path: Path, flags: int = os.O_RDONLY) -> int:
        if flags & os.O_CREAT and path.name == "boot":
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags)

    monkeypatch.setattr(loader.trust, "open_private", refused)
    assert put(Cache(tmp_path / "cache", None)) == DATA
    (tmp_path / "cache" / "files" / NAME).unlink()
    calls = Calls(monkeypatch)
    assert put(Cache(tmp_path / "cache", None)) == DATA
    assert calls.renamed_into(tmp_path / "cache" / "files") == [NAME]
