"""`pack`: shards and layers as one dataset; the same members byte for byte, each sample once, in an order that only the seed decides."""

import errno
import hashlib
import io
import itertools
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from loader import make_loader
from loader.folders import LocalFolder
from loader.format import MANIFEST, NULL_CAPTION, Manifest
from precompute import pack, run, verify
from precompute.errors import PrecomputeError, RecipeMismatch, SourceError, UsageError
from precompute.shards import packing, shared_keys, tar_writer
from precompute.shards.shared_keys import find_shared_key
from precompute.shards.unit_writer import UnitWriter
from tests.loader import test_captions as kinds
from tests.support.judges import samples_by_tarfile
from tests.support.launching import leftovers, tars
from tests.support.processes import finish
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.worker import DEAD

TOYS: dict[str, Any] = {"dtype": "float32", "batch_size": 4, "num_threads": 1}
SECOND = "second=toy?layer=-2&pooled"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, made at once, and `base` with the layer `text`: three units of four samples and a row that is no image."""
    folder, raw = tmp_path_factory.mktemp("pack"), tmp_path_factory.mktemp("raw")
    for unit in range(3):
        members = []
        for row in range(5):
            image = b"<html>" if row == 3 else jpeg(5 * unit + row, (256, 512) if row == 4 else (256, 256))
            members += [(f"{unit}{row}.jpg", image), (f"{unit}{row}.txt", f"caption {unit} {row}".encode())]
        write_tar(raw / f"{unit:05d}.tar", members)

    def made(name: str, **options: Any) -> None:
        config = run.Config(
            "builders/webdataset",
            folder / name,
            data_dir=raw,
            **{**TOYS, "vae": "toy"},
            resolutions=(64,),
            **options,
        )
        run.run(config)

    made("whole", text_encoder=("toy", SECOND))
    made("base", text_encoder=("toy",))
    made("buckets", text_encoder=("toy",), buckets=16)
    run.run(run.Config(output=folder / "text", beside=str(folder / "base"), text_encoder=(SECOND,), **TOYS))
    return folder


def packed(output: Path, *inputs: Path, **options: Any) -> Path:
    pack.run(pack.Config(tuple(map(str, inputs)), output, **options))
    return output


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_json((folder / MANIFEST).read_bytes())


def findings(folder: Path) -> list[str]:
    return [str(finding) for finding in verify.verify(verify.Config(str(folder))).findings]


def test_base_and_layer_packed_are_what_is_made_at_once(folder: Path, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", folder / "base", folder / "text", samples_per_shard=5)
    whole = samples_by_tarfile(folder / "whole")
    assert list(samples_by_tarfile(out).items()) == list(whole.items())
    assert [list(members) for members in samples_by_tarfile(out).values()] == [
        list(members) for members in whole.values()
    ]
    assert [shard.samples for shard in manifest_of(out).splits["train"].shards] == [4, 4, 4]
    assert not findings(out) and not leftovers(out)
    recipe = {**manifest_of(out).recipe, "dataset": None}
    assert recipe == {**manifest_of(folder / "whole").recipe, "dataset": None}
    null = np.load(out / "null_caption.npz")
    assert set(null.files) == {"caption_latents", "caption_latents_second", "caption_pooled_second"}
    options: dict[str, Any] = {"shuffle": False, "extras": ["key", "caption"]}
    for one, other in zip(
        make_loader(out, 4, **options), make_loader(folder / "whole", 4, **options), strict=True
    ):
        assert one["key"] == other["key"] and torch.equal(
            one["caption_latents_second"], other["caption_latents_second"]
        )


def test_tars_open_at_once_are_bounded_however_many_shards_a_shuffle_touches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel lists them, over all units that are written at once."""
    many = packed(tmp_path / "many", folder / "whole", samples_per_shard=1)
    opened, header = [], tar_writer.tar_header

    def counting(name: str, size: int) -> bytes:
        links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        opened.append(sum(link.startswith(str(many)) for link in links if link.endswith(".tar")))
        return header(name, size)

    monkeypatch.setattr(tar_writer, "tar_header", counting)
    monkeypatch.setattr(packing, "OPEN", 6)
    out = packed(tmp_path / "out", many, shuffle=3, samples_per_shard=6)
    assert samples_by_tarfile(out) == samples_by_tarfile(folder / "whole")
    assert 1 < max(opened) <= 6


def test_an_input_that_cannot_be_opened_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the place of the output, where nothing is wrong."""

    opened = LocalFolder.open

    def fail(self: LocalFolder, name: str, *expected: Any) -> int:
        if name.endswith(".tar"):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return opened(self, name, *expected)

    monkeypatch.setattr(LocalFolder, "open", fail)
    with pytest.raises(SourceError, match=rf"{folder / 'base'}: .*Permission denied"):
        packed(tmp_path / "out", folder / "base")


def test_shuffled_by_a_seed_over_all_shards(folder: Path, tmp_path: Path) -> None:
    orders = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = packed(tmp_path / name, folder / "base", folder / "text", shuffle=seed, samples_per_shard=6)
        orders[name] = list(samples_by_tarfile(out))
        assert samples_by_tarfile(out) == samples_by_tarfile(folder / "whole")
        assert not findings(out)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    assert orders["a"] != orders["c"] and orders["a"] != sorted(orders["a"])
    assert len({key[:5] for key in orders["a"][:6]}) > 1


def test_selected(folder: Path, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", folder / "base", where="height >= 512", samples_per_shard=100)
    assert list(samples_by_tarfile(out)) == ["00000-04", "00001-14", "00002-24"]
    keys = tmp_path / "keys.txt"
    keys.write_text("00001-10\n00002-21\nno-such\n")
    out = packed(tmp_path / "some", folder / "base", folder / "text", keys=keys)
    assert list(samples_by_tarfile(out)) == ["00001-10", "00002-21"]
    with pytest.raises(UsageError, match="no sample fulfils them"):
        packed(tmp_path / "none", folder / "base", where="height > 5000")
    with pytest.raises(UsageError, match=r"no_column.*There are: key"):
        packed(tmp_path / "none", folder / "base", where="no_column = 1")
    assert not (tmp_path / "none").exists()


def test_buckets_stay_apart(folder: Path, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", folder / "buckets", shuffle=3, samples_per_shard=4)
    split = manifest_of(out).splits["train"]
    assert {shard.bucket for shard in split.shards} == {
        shard.bucket for shard in manifest_of(folder / "buckets").splits["train"].shards if shard.samples
    }
    assert samples_by_tarfile(out) == samples_by_tarfile(folder / "buckets")
    assert not findings(out)
    shapes = {tuple(batch["image_latents"].shape[2:]) for batch in make_loader(out, 3)}
    assert len(shapes) == 2


def test_interrupted_it_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"shuffle": 0, "samples_per_shard": 3}
    undisturbed = packed(tmp_path / "whole", folder / "base", folder / "text", **options)
    commit, calls, turns = UnitWriter.commit, [], itertools.count(1)

    def breaks(self: UnitWriter, *arguments: Any) -> Any:
        calls.append(self.stem)
        if next(turns) == 2:
            raise KeyboardInterrupt
        return commit(self, *arguments)

    monkeypatch.setattr(UnitWriter, "commit", breaks)
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path / "out", folder / "base", folder / "text", **options)
    # Units are written some at a time: another one may have been through.
    done = len(list((tmp_path / "out").glob("train-*.json")))
    assert done in (1, 2) and len(calls) == done + 1
    packed(tmp_path / "out", folder / "base", folder / "text", **options)
    assert len(calls) == 5
    assert tars(tmp_path / "out") == tars(undisturbed)
    assert not leftovers(tmp_path / "out")


def test_two_processes_killed_at_random_instants(folder: Path, tmp_path: Path, start: Any) -> None:
    inputs = (str(folder / "base"), str(folder / "text"))
    finish(start, tmp_path / "undisturbed", tmp_path, packed=inputs)
    for turn in range(4):
        output = tmp_path / f"killed-{turn}"
        output.mkdir()
        ends = random.SystemRandom().sample(range(2, 60), 2)
        print(f"at changes {ends}")
        # Of the last two processes one lives: it takes up what the other leaves.
        both = [
            start(output, tmp_path, packed=inputs, timeout=1.0, die_at=end)
            for end in (ends if turn < 3 else [ends[0], None])
        ]
        for process in both:
            process.join(timeout=200)
        assert {process.exitcode for process in both} <= {0, DEAD}
        finish(start, output, tmp_path, packed=inputs, timeout=1.0)
        assert tars(output) == tars(tmp_path / "undisturbed") and not leftovers(output)
        for path in [*(tmp_path / "undisturbed").glob("*.parquet"), tmp_path / "undisturbed" / MANIFEST]:
            assert (output / path.name).read_bytes() == path.read_bytes()
        assert not verify.verify(verify.Config(str(output))).findings


def test_what_does_not_go_together_is_refused(folder: Path, tmp_path: Path) -> None:
    def refused(match: str, kind: type[PrecomputeError], *inputs: Path, **options: Any) -> None:
        with pytest.raises(kind, match=match):
            packed(tmp_path / "out", *inputs, **options)

    refused("different recipes", UsageError, folder / "base", folder / "whole")
    refused("is a layer", UsageError, folder / "text", folder / "base")
    refused("no manifest|nothing", UsageError, tmp_path / "nothing")
    refused("--samples-per-shard", UsageError, folder / "base", samples_per_shard=0)
    packed(tmp_path / "out", folder / "base", shuffle=0)
    refused("dataset.packed.shuffle: 0 there, 1 here", RecipeMismatch, folder / "base", shuffle=1)


def test_a_damaged_input_is_told(folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(folder / "base", tmp_path / "base")
    path = base / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(PrecomputeError, match=r"train-00001\.tar"):
        packed(tmp_path / "out", base)


def test_stock_datasets_reads_packed_shards(folder: Path, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", folder / "base", folder / "text", shuffle=0)
    files = [str(path) for path in sorted(out.glob("*.tar"))]
    read = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert read["__key__"] == list(samples_by_tarfile(out))
    expected = np.load(io.BytesIO(samples_by_tarfile(out)[read[0]["__key__"]]["moments_64.npy"]))
    assert np.array_equal(np.asarray(read[0]["moments_64.npy"], np.float16), expected)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Nine samples of up to three captions each, bfloat16, of two shapes; a layer of as many captions; and both packed."""
    root = tmp_path_factory.mktemp("several")
    for unit, numbers in enumerate((range(5), range(5, 9))):
        members = []
        for n in numbers:
            about = {
                "caption": [f"{n} {word}" for word in ("a", "b b", "c", "d")[: 1 + n % 4]],
                "score": n / 2,
            }
            members += [
                (f"{n}.jpg", jpeg(n, (256, 512) if n % 3 == 0 else (256, 256))),
                (f"{n}.json", json.dumps(about).encode()),
            ]
        write_tar(root / "raw" / f"{unit}.tar", members)
    base, layer, options = root / "base", root / "layer", {**TOYS, "store": "bfloat16"}
    base_only: dict[str, Any] = {"vae": "toy", "resolutions": (64,), "max_captions": 3, "buckets": 16}
    run.run(
        run.Config(
            "builders/webdataset", base, data_dir=root / "raw", text_encoder=("toy",), **base_only, **options
        )
    )
    run.run(run.Config(output=layer, beside=str(base), text_encoder=(SECOND,), **options))
    return base, layer, packed(root / "out", base, layer, shuffle=1, samples_per_shard=4)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> what the sidecars say of a sample, places aside."""
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {
        row["key"]: {n: v for n, v in row.items() if not n.startswith(("offset_", "size_"))} for row in rows
    }


def by_caption(path: Any, captions: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """(key, caption) -> what a batch holds of it, of 20 epochs."""
    extras = ["key", "caption", "caption_kind"]
    batches = make_loader(path, 1, captions=captions, extras=extras, pooled=True, posterior="mean")
    found = {}
    for _ in range(20):
        for batch in batches:
            found[batch["key"][0], batch["caption"][0]] = batch
    batches.close()
    return found


def test_several_captions_are_packed_and_drawn_as_before(several: tuple[Path, Path, Path]) -> None:
    base, layer, out = several
    assert not findings(out)
    ours, theirs, layers = manifest_of(out), manifest_of(base), manifest_of(layer)
    assert ours.fields == (*theirs.fields, *layers.fields)
    assert {f.captions for f in ours.fields if f.kind.startswith("caption")} == {3}
    assert {f.dtype for f in ours.fields} == {"bfloat16"} and ours.recipe["max_captions"] == 3  # type: ignore[typeddict-item]
    total = sum(min(1 + n % 4, 3) for n in range(9))
    assert ours.splits["train"].caption_kinds == theirs.splits["train"].caption_kinds == {"caption": total}
    second, rows = rows_of(layer), rows_of(base)
    assert rows_of(out) == {
        key: row | {"caption_tokens_second": second[key]["caption_tokens_second"]}
        for key, row in rows.items()
    }
    assert all(row["crop_64"] and row["captions"] and "score" in row["extras"] for row in rows.values())
    for captions in ("random", {"caption": 1.0}):
        drawn, before = by_caption(out, captions), by_caption((base, layer), captions)
        assert drawn.keys() == before.keys() and len(drawn) == total
        for one, batch in drawn.items():
            assert batch.keys() == before[one].keys()
            for name, value in batch.items():
                other = before[one][name]
                assert torch.equal(value, other) if torch.is_tensor(value) else value == other


def test_the_empty_caption_is_that_of_all_inputs(several: tuple[Path, Path, Path]) -> None:
    *inputs, out = several
    with np.load(out / NULL_CAPTION) as packed_one:
        for folder in inputs:
            with np.load(folder / NULL_CAPTION) as one:
                assert one.files and all(np.array_equal(one[name], packed_one[name]) for name in one.files)
        assert {packed_one[name].dtype for name in packed_one.files} == {np.dtype(np.uint16)}
    assert manifest_of(out).null_caption == hashlib.sha256((out / NULL_CAPTION).read_bytes()).hexdigest()


def test_captions_are_drawn_by_kind_from_packed_shards_as_before(tmp_path: Path) -> None:
    folder = kinds.write(tmp_path / "kinds", 40)
    out = packed(tmp_path / "out", folder, samples_per_shard=10)
    assert manifest_of(out).splits["train"].caption_kinds == manifest_of(folder).splits["train"].caption_kinds
    for captions in ("random", {"llava": 0.7, "alt": 0.3}, {"human": 2, "gpt": 1}):
        one, other = (
            list(kinds.drawn(kinds.load(path, captions=captions, seed=2))) for path in (folder, out)
        )
        assert one == other and {caption for _, caption in one} > {0, 1}


def test_shards_from_before_there_were_such_columns_are_packed(tmp_path: Path) -> None:
    """They may be the first of a folder that a newer version has finished, too: the others' columns are kept."""
    folder = kinds.write(tmp_path / "old", 40, several=False)
    sidecar = folder / "train-00000.parquet"
    new = ["captions", "caption_kinds", "crop_32", "caption_tokens", "caption_tokens_t5"]
    pq.write_table(pq.read_table(sidecar).drop_columns(new), sidecar)
    before = rows_of(folder)
    after = rows_of(packed(tmp_path / "out", folder, samples_per_shard=16))
    for key, row in after.items():
        assert {name: row[name] for name in before[key]} == before[key]
        assert all(row[name] for name in new) == (int(key[1:]) >= 10)


def test_bases_that_share_a_key_are_refused_before_any_work(tmp_path: Path) -> None:
    a, b, c = (
        kinds.write(tmp_path / name, count, 2, first=first)
        for name, count, first in (("a", 20, 0), ("b", 8, 20), ("c", 3, 17))
    )
    assert len(samples_by_tarfile(packed(tmp_path / "both", a, b))) == 28
    with pytest.raises(UsageError, match=rf"{a} and {c}: both have the key k1[789].*pack them apart") as told:
        packed(tmp_path / "out", a, b, c)
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_a_key_that_stands_in_two_units_of_one_base_is_refused(tmp_path: Path) -> None:
    folder = kinds.write(tmp_path / "a", 20, 2)
    path = folder / "train-00001.parquet"
    table = pq.read_table(path)
    keys = pa.array([*table["key"].to_pylist()[:-1], "k0"])
    pq.write_table(table.set_column(table.column_names.index("key"), "key", keys), path)
    with pytest.raises(
        UsageError, match=rf"{folder}: the key k0 stands in two of its shards.*leave one of both out"
    ) as told:
        packed(tmp_path / "out", folder)
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()
    assert len(samples_by_tarfile(packed(tmp_path / "out", folder, where="key != 'k0'"))) == 18


def test_shared_keys_are_found_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def column(*numbers: int) -> Any:
        return pa.array([f"key-{n}" for n in numbers], pa.string())

    monkeypatch.setattr(shared_keys, "SEEN", 4)
    apart = [(0, column(*range(10))), (1, column(*range(10, 25))), (0, column(*range(25, 30)))]
    assert find_shared_key(lambda: apart, 30) is None
    assert find_shared_key(list, 0) is None
    for n in range(30):
        one = 0 if n < 10 or n >= 25 else 1
        assert find_shared_key(lambda n=n: [*apart, (2, column(n))], 31) == (f"key-{n}", one, 2)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("offset_latents_32", 1 << 40, "latents_32 that ends behind the .* bytes of the tar"),
        ("size_json", 1 << 40, "json that ends behind the .* bytes of the tar"),
        ("caption_tokens_t5", [-1], "caption_tokens_t5 that is less than 0"),
        ("offset_json", None, "ok row without offset_json"),
    ],
)
def test_a_sidecar_that_lies_is_refused_before_any_work(
    tmp_path: Path, column: str, value: Any, message: str
) -> None:
    folder = kinds.write(tmp_path / "damaged", 6, 1)
    change(folder / "train-00000.parquet", column, value)
    with pytest.raises(UsageError, match=f"^{folder}/train-00000.parquet.*{message}") as told:
        packed(tmp_path / "out", folder)
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_extras_that_are_no_json_are_told(tmp_path: Path) -> None:
    folder = kinds.write(tmp_path / "damaged", 6, 1)
    change(folder / "train-00000.parquet", "extras", "{")
    with pytest.raises(SourceError, match=r"unit 0: an input is damaged .*k0: its extras are no JSON"):
        packed(tmp_path / "out", folder)


def change(sidecar: Path, column: str, value: Any) -> None:
    """Another value in the first row."""
    table = pq.read_table(sidecar)
    at, kind = table.column_names.index(column), table.schema.field(column)
    values = [value, *table[column].to_pylist()[1:]]
    pq.write_table(table.set_column(at, kind, pa.array(values, kind.type)), sidecar)
