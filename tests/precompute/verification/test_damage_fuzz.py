"""A sound folder with one mutation: verify finds it, or no reader can see it.

LATENTMILL_FUZZ=100 tries so many mutations instead of a thousand, LATENTMILL_FUZZ_SEED=10000 others than CI does.
"""

import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from loader.format import MANIFEST, NULL_CAPTION, Marker
from precompute import verify
from tests.support.batches import epoch_of
from tests.support.finished_folder import write_shards

MUTATIONS = int(os.environ.get("LATENTMILL_FUZZ", "1000"))
FIRST = int(os.environ.get("LATENTMILL_FUZZ_SEED", "0"))
ODD: list[Any] = [None, -1, 0, 1, 7, 2**31, 0.25, True, False, "", "x", "../x", [], {}]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("fuzz") / "sound", units=2, samples=3)


# --- what readers see ---


def view(folder: Path) -> Any:
    """What stock readers and ours make of a folder; an error is something that one sees."""
    try:
        return [_stock(folder), _documents(folder), _loaded(folder)]
    except Exception as error:  # noqa: BLE001  whatever a reader raises
        return repr(error)


def _stock(folder: Path) -> Any:
    """Tars as Python's own reader has them, as a glob of the dataset card finds them; sidecars as pyarrow has them."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("train-[0-9]*.tar")):
        with tarfile.open(path) as tar:
            members = [(info.name, tar.extractfile(info).read()) for info in tar if info.isfile()]  # type: ignore[union-attr]
        found[str(path.relative_to(folder))] = members
    for path in sorted(folder.rglob("train-[0-9]*.parquet")):
        found[str(path.relative_to(folder))] = pq.read_table(path).to_pylist()
    return found


def _documents(folder: Path) -> Any:
    """Manifest, markers without their timings, which are facts of a run, and the empty caption."""
    markers = {path.name: Marker.from_json(path.read_bytes()) for path in sorted(folder.glob("train-*.json"))}
    about = {
        name: {k: _stated(v) for k, v in vars(marker).items() if k != "timings"}
        for name, marker in markers.items()
    }
    with np.load(folder / NULL_CAPTION) as file:
        null = {name: file[name].tolist() for name in file}
    return [_stated(json.loads((folder / MANIFEST).read_text())), about, null]


def _stated(value: Any) -> Any:
    """A document without what is null: a key that one lacks and one that is null say the same, as does a null under no name of ours."""
    if isinstance(value, list):
        return [_stated(v) for v in value]
    return {k: _stated(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _loaded(folder: Path) -> Any:
    """An epoch of the loader."""
    return epoch_of(folder, 2, resolution=32, posterior="mean", extras=["key", "caption"])


# --- mutations ---


def flip_a_bit(folder: Path, rng: random.Random) -> str:
    path = _file(folder, rng)
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"{path.name}[{place}]"


def overwrite_a_range(folder: Path, rng: random.Random) -> str:
    path = _file(folder, rng)
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    length = min(rng.choice([1, 16, 512, 4096]), len(data) - start)
    data[start : start + length] = bytes(length) if rng.random() < 0.5 else rng.randbytes(length)
    path.write_bytes(data)
    return f"{path.name}[{start}:{start + length}]"


def cut_or_lengthen(folder: Path, rng: random.Random) -> str:
    path = _file(folder, rng)
    data = path.read_bytes()
    path.write_bytes(
        data[: rng.randrange(len(data))] if rng.random() < 0.5 else data + bytes(rng.choice([1, 512, 10240]))
    )
    return f"{path.name} of {len(data)} has {path.stat().st_size}"


def swap_two_files(folder: Path, rng: random.Random) -> str:
    one, other = rng.sample(_files(folder), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return f"{one.name} <-> {other.name}"


def rename(folder: Path, rng: random.Random) -> str:
    path = _file(folder, rng)
    name = _other_name(path.name, rng)
    path.rename(folder / name)
    return f"{path.name} -> {name}"


def double(folder: Path, rng: random.Random) -> str:
    path = _file(folder, rng)
    place = (
        folder / rng.choice(["", "train/0000", "old"]) / rng.choice([path.name, _other_name(path.name, rng)])
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place) if place != path else None
    return f"{path.name} also as {place.relative_to(folder)}"


def remove(folder: Path, rng: random.Random) -> str:
    path = _file(folder, rng)
    path.unlink()
    return f"{path.name} removed"


def edit_a_field(folder: Path, rng: random.Random) -> str:
    path = rng.choice([path for path in _files(folder) if path.suffix == ".json"])
    content = json.loads(path.read_text())
    place = rng.choice(_places(content))
    parent = content
    for step in place[:-1]:
        parent = parent[step]
    if rng.random() < 0.2:
        del parent[place[-1]]
    else:
        value = parent[place[-1]]
        near = [value + 1] if isinstance(value, int) else [value[::-1]] if isinstance(value, str) else []
        parent[place[-1]] = rng.choice([*ODD, *near, *near, *near])
    path.write_text(json.dumps(content))
    return f"{path.name}: {place}"


KINDS: list[Callable[[Path, random.Random], str]] = [
    flip_a_bit,
    overwrite_a_range,
    cut_or_lengthen,
    swap_two_files,
    rename,
    double,
    remove,
    edit_a_field,
    edit_a_field,
]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(_files(folder))


def _other_name(name: str, rng: random.Random) -> str:
    stem, _, suffix = name.rpartition(".")
    return rng.choice(
        [f"{stem}-01.{suffix}", f"val-00000.{suffix}", f"train-00001.{suffix}", f"train-00007.{suffix}", f"x.{suffix}", f"{name}.bak", f".{name}"]
    )  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, inner in pairs for place in [(*path, name), *_places(inner, (*path, name))]]


def test_a_mutation_is_found_or_seen_by_nobody(sound: Path, tmp_path: Path) -> None:
    config = verify.Config(str(tmp_path / "mutated"), num_threads=1)
    before, unseen = view(sound), 0
    assert isinstance(before, list)
    for seed in range(FIRST, FIRST + MUTATIONS):
        rng, folder = random.Random(seed), tmp_path / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        mutate = KINDS[seed % len(KINDS)]
        what = mutate(folder, rng)
        try:
            found = verify.verify(config).findings
        except verify.UsageError:  # it is no folder of shards any more
            continue
        if not found:
            unseen += 1
            assert view(folder) == before, f"seed {seed}, {mutate.__name__}: {what}"
    assert unseen < MUTATIONS / 4
