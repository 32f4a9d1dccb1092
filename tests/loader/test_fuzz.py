"""Manifests, markers and sidecars with random damage: a FormatError, or what they said before; never another exception.

LATENTMILL_FUZZ=2000 tries so many mutations of each, and more.
"""

import io
import json
import os
import random
import re
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loader import DataError, FormatError
from loader.format import Manifest, Marker
from loader.npy import npy_array, npy_bytes
from loader.sidecar import read_sidecar
from loader.tar_headers import tar_members
from tests.support.batches import epoch_of
from tests.support.keyed_shards import FIELDS, write_shards
from tests.support.mutations import damage, mutated_json

MUTATIONS = int(os.environ.get("LATENTMILL_FUZZ", "2000"))
MEMBERS = [field.name for field in FIELDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("fuzz") / "a", [6, 5])


@pytest.mark.parametrize("kind", [Marker, Manifest])
def test_a_mutated_marker_or_manifest(folder: Path, kind: type[Marker] | type[Manifest]) -> None:
    text = (folder / ("manifest.json" if kind is Manifest else "train-00000.json")).read_text()
    rng, refused = random.Random(kind.__name__), 0
    for _ in range(4 * MUTATIONS):
        try:
            read = kind.from_json(mutated_json(json.loads(text), rng))
        except FormatError as error:
            assert len(str(error)) < 3000
            assert str(error).isprintable(), repr(str(error))
            refused += 1
        else:
            assert kind.from_json(read.to_json()).to_json() == read.to_json()
    assert refused > 2 * MUTATIONS


def epoch(folder: Path) -> list[dict[str, Any]]:
    return epoch_of(folder, 4, resolution=256, extras=["key", "caption"], on_error="raise", seed=1)


# What a manifest lacks and an argument may give, or names as what there is.
LACKS = re.compile(
    r"no sample there|has \[.*\]; choose one|says how to scale|split='train' is not in|which shard is of which bucket"
)


def test_a_loader_of_a_mutated_manifest(folder: Path, tmp_path: Path) -> None:
    """A FormatError, or the same batches. But for what a manifest alone can say: that there are fewer fields, that latents are of
    another scale; and for what it takes a shard to see: that it is not there, or of another size or shape."""
    here = tmp_path / "a"
    here.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (here / path.name).symlink_to(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    fields = {field["name"]: field for field in manifest["fields"]}
    rng, outcomes, expected = random.Random(1), Counter[str](), epoch(folder)
    for _ in range(turns := 2 * MUTATIONS):
        changed = mutated_json(manifest, rng)
        (here / "manifest.json").unlink()
        (here / "manifest.json").write_bytes(changed)
        try:
            found = epoch(here)
        except (FormatError, DataError, ValueError) as error:
            outcomes[type(error).__name__] += 1
            assert str(error).isprintable()
            assert str(here) in str(error) or "which shard is of which bucket" in str(error)
            if type(error) is DataError:
                assert re.search(r"shard train-0000[01]", str(error)), changed
            elif type(error) is ValueError:
                assert LACKS.search(str(error)), changed
            continue
        left = {field["name"]: field for field in json.loads(changed)["fields"]}
        image = [
            fields["moments_256"].get(name) == left["moments_256"].get(name) for name in ("scale", "shift")
        ]
        for batch, whole in zip(found, expected, strict=True):
            gone = {name for name in fields if name not in left}
            gone |= {name.replace("_latents", "_mask") for name in gone}
            rescaled = set() if all(image) else {"image_latents"}
            gone &= whole.keys()
            kept = whole.keys() - gone - rescaled
            assert batch.keys() == whole.keys() - gone, changed
            assert {name: batch[name] for name in kept} == {name: whole[name] for name in kept}, changed
        outcomes["the same" if found == expected else "another"] += 1
    assert outcomes["FormatError"] > 0.8 * turns and outcomes["the same"] > 0.05 * turns
    assert outcomes["another"] + outcomes["DataError"] + outcomes["ValueError"] < 0.05 * turns
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB


def change_column(table: pa.Table, rng: random.Random) -> pa.Table:
    """One column dropped, of another type, or with one odd value."""
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    kind = rng.random()
    if kind < 0.1:
        return table.drop_columns([name])
    if kind < 0.4:
        odd = [pa.array([v] * len(table)) for v in (1.5, "x", True, None, [1], b"\xff", 7)]
        odd += [pa.array([1] * len(table), pa.int8())]
        if not pa.types.is_list(column.type):  # of which Arrow makes no dictionary
            odd.append(column.combine_chunks().dictionary_encode())
        return table.set_column(at, name, rng.choice(odd))
    values = column.to_pylist()
    number = pa.types.is_integer(column.type)
    values[rng.randrange(len(values))] = rng.choice(
        [None, 0, 2**64 - 1]
        if column.type == pa.uint64()
        else [None, -1, 0, 2**31 - 1, *([2**63 - 1, 2**62] if column.type == pa.int64() else [])]
        if number
        else [None, [], [None], [-1], [2**31 - 1] * 4, [7] * 1000]
        if column.type == pa.list_(pa.int32())
        else [None, [], [None], ["x" * 10_000]]
        if pa.types.is_list(column.type)
        else [None, "", "ok", "a/b", "\x1b[31m", "x" * 10_000]
    )
    return table.set_column(at, name, pa.array(values, column.type))


def test_a_mutated_sidecar(folder: Path) -> None:
    path = folder / "train-00000.parquet"
    data, table, end = path.read_bytes(), pq.read_table(path), (folder / "train-00000.tar").stat().st_size
    rng, refused = random.Random(2), 0
    for turn in range(2 * MUTATIONS):
        if turn % 2:
            changed = bytearray(data)
            damage(changed, rng)
        else:
            out = io.BytesIO()
            pq.write_table(change_column(table, rng), out)
            changed = bytearray(out.getvalue())
        try:
            found = read_sidecar(io.BytesIO(changed), MEMBERS, ["caption"], len(table), end)
        except (FormatError, OSError):
            refused += 1
            continue
        for member in MEMBERS:
            assert found.offset[member].min(initial=0) >= 0 and found.size[member].min(initial=0) >= 0
            ends = [int(o) + int(s) for o, s in zip(found.offset[member], found.size[member], strict=True)]
            assert max(ends, default=0) <= end
        assert all(found.key(n).isprintable() for n in range(len(found)))
        assert all(isinstance(found.value("caption", n), str | None) for n in range(len(found)))
    assert refused > MUTATIONS // 2


def test_a_sidecar_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "bomb.parquet", 6_000_000
    with pq.ParquetWriter(path, pa.schema([("status", pa.string()), ("key", pa.string()), ("caption", pa.string())]), compression="zstd") as out:  # fmt: skip
        words = {"status": "ok", "key": "k" * 40, "caption": "c" * 100}
        part = pa.table({name: pa.array([word] * 1_000_000) for name, word in words.items()})
        for _ in range(rows // 1_000_000):
            out.write_table(part)
    assert path.stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    for claimed in (rows, 10):
        with path.open("rb") as file, pytest.raises(FormatError, match=r"unpacks to more|rows, the manifest"):
            read_sidecar(file, [], ["caption"], claimed, 1)
    assert pa.default_memory_pool().max_memory() - before < 2 << 30


def test_a_mutated_npy() -> None:
    data, rng, refused = npy_bytes(np.zeros((2, 3), np.float16)), random.Random(3), 0
    for _ in range(4 * MUTATIONS):
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(len(changed))] = rng.choice(b"0123456789(),'<>fOV|-[]{}: \x00\xff")
        try:
            assert npy_array(bytes(changed)).nbytes <= len(changed)
        except FormatError:
            refused += 1
    assert refused


HEADERS: list[Callable[[], str]] = [
    lambda: "{'descr': '<f2', 'fortran_order': False, 'shape': (0, 1000000000000000000000)}",
    lambda: "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000,)}",
    lambda: "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}",
    lambda: "{'descr': '<f2', 'fortran_order': False, 'shape': (True,)}",
    lambda: "(" * 3000,
    lambda: "-" * 3000 + "1",
    lambda: "[" * 60_000,
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_hostile_npy_header(header: Callable[[], str]) -> None:
    text = header().encode()
    with pytest.raises(FormatError):
        npy_array(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def test_a_mutated_tar(folder: Path) -> None:
    data, rng, refused = (folder / "train-00000.tar").read_bytes()[:20_000], random.Random(4), 0
    for _ in range(MUTATIONS):
        changed = bytearray(data)
        at = rng.randrange(len(changed) // 512) * 512
        changed[at + rng.choice([124, 125, 135, 148, 156, 0, 345])] = rng.choice(b"-x7L\x80\xff0")
        if rng.random() < 0.7:  # with a right checksum
            block = changed[at : at + 512]
            total = sum(block) - sum(block[148:156]) + 256
            changed[at + 148 : at + 156] = b"%06o\0 " % total
        try:
            found = list(tar_members(io.BytesIO(changed), len(changed)))
            assert all(0 <= offset <= offset + size <= len(changed) for _, offset, size in found)
        except FormatError:
            refused += 1
    assert refused
