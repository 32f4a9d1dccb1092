"""`--beside`: a layer holds what would have been made had all been made at once, and nothing else; held through the commands."""

import gc
import hashlib
import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from loader import make_loader
from loader.format import MANIFEST, Manifest
from precompute import preview, run, verify
from precompute.errors import PrecomputeError, RecipeMismatch, SourceError, UsageError
from precompute.hub.dataset_card import render_card
from tests.support.batches import all_same
from tests.support.launching import leftovers, tars
from tests.support.processes import finish
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.swapped import swap_members
from tests.support.tiny_models import save_tiny

TOYS: dict[str, Any] = {"vae": "toy", "dtype": "float32", "batch_size": 3, "num_threads": 1}
SECOND = "second=toy?layer=-2&pooled"
SPLITS = {"samples_per_shard": 3}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tars of five rows; one row of each is no image, and each has a picture of another shape."""
    folder = tmp_path_factory.mktemp("raw")
    for unit in range(3):
        members = []
        for row in range(5):
            size = (384, 256) if row == 1 else (256, 256)
            image = b"<html>" if row == 3 else jpeg(5 * unit + row, size)
            members += [
                (f"{unit}{row}.jpg", image),
                (f"{unit}{row}.txt", f"a caption of {unit} {row}".encode()),
            ]
        write_tar(folder / f"{unit:05d}.tar", members)
    return folder


def made(output: Path, raw: Path, **options: Any) -> Path:
    run.run(run.Config("builders/webdataset", output, data_dir=raw, **{**TOYS, **SPLITS, **options}))
    return output


def layer(output: Path, base: Path | str, **options: Any) -> Path:
    run.run(run.Config(output=output, beside=str(base), **{**TOYS, "vae": None, **options}))
    return output


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, made at once; `base`, and beside it the layers `text` and `large`."""
    folder = tmp_path_factory.mktemp("layers")
    made(folder / "whole", raw, text_encoder=("toy", SECOND), resolutions=(112, 128))
    made(folder / "base", raw, text_encoder=("toy",), resolutions=(112,))
    layer(folder / "text", folder / "base", text_encoder=(SECOND,))
    layer(folder / "large", folder / "base", resolutions=(128,), data_dir=raw)
    return folder


def batches(path: Any, **options: Any) -> list[Any]:
    loader = make_loader(
        path, 2, **{"extras": ["key", "caption"], "shuffle_window": 8, "pooled": True, **options}
    )
    found = list(loader)
    loader.close()
    return found


@pytest.mark.parametrize("resolution", [112, 128])
def test_base_and_layers_are_what_is_made_at_once(folder: Path, resolution: int) -> None:
    joined = (folder / "base", folder / "text", folder / "large")
    found, expected = batches(joined, resolution=resolution), batches(folder / "whole", resolution=resolution)
    assert len(found) == len(expected) == 6
    assert all_same(found, expected)


def manifest_of(path: Path) -> Manifest:
    return Manifest.from_json((path / MANIFEST).read_bytes())


def test_a_layer_has_the_shards_and_rows_of_its_base_and_only_its_own_fields(folder: Path) -> None:
    base = manifest_of(folder / "base")
    for name, fields in (
        ("text", ["caption_latents_second", "caption_pooled_second"]),
        ("large", ["moments_128"]),
    ):
        own = manifest_of(folder / name)
        assert [field.name for field in own.fields] == fields
        assert own.recipe["base"] == base.fingerprint
        assert {**own.splits["train"].plan, "base": None} == {**base.splits["train"].plan, "base": None}
        assert own.splits["train"].rejected == base.splits["train"].rejected == {"undecodable": 3}
        for shard, there in zip(own.splits["train"].shards, base.splits["train"].shards, strict=True):
            assert (shard.name, shard.samples, shard.rows) == (there.name, there.samples, there.rows)
            rows = [pq.read_table(folder / n / f"{shard.name}.parquet") for n in (name, "base")]
            assert rows[0]["key"].equals(rows[1]["key"]) and rows[0]["status"].equals(rows[1]["status"])
    assert manifest_of(folder / "text").recipe.keys() == {"base", "dataset", "text_encoders"}


def test_a_layer_beside_buckets_has_one_shape_a_shard_and_the_same_crops(raw: Path, tmp_path: Path) -> None:
    shape: dict[str, Any] = {
        "buckets": 16,
        "flip": True,
        "crop": "random",
        "seed": 5,
        "text_encoder": ("toy",),
    }
    made(tmp_path / "base", raw, **shape, resolutions=(112,))
    layer(tmp_path / "large", tmp_path / "base", resolutions=(128,), flip=True, data_dir=raw)
    joined = (tmp_path / "base", tmp_path / "large")
    small, large = (
        batches(joined, pooled=False, resolution=112),
        batches(joined, pooled=False, resolution=128),
    )
    assert [batch["key"] for batch in small] == [batch["key"] for batch in large]
    assert len({batch["image_latents"].shape for batch in small}) == 2
    for one, other in zip(small, large, strict=True):
        (h, w), (high, wide) = one["image_latents"].shape[2:], other["image_latents"].shape[2:]
        assert abs(w / h - wide / high) < 0.35
    alone = batches(tmp_path / "large", pooled=False, resolution=128)
    assert {key for batch in alone for key in batch["key"]} == {
        key for batch in small for key in batch["key"]
    }


# --- whatever happens ---


def test_interrupted_it_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from precompute.shards.unit_writer import UnitWriter

    commit, calls = UnitWriter.commit, []

    def breaks(self: UnitWriter, *arguments: Any) -> Any:
        calls.append(self.stem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(self, *arguments)

    monkeypatch.setattr(UnitWriter, "commit", breaks)
    with pytest.raises(KeyboardInterrupt):
        layer(tmp_path / "text", folder / "base", text_encoder=(SECOND,))
    assert len(list((tmp_path / "text").glob("train-*.json"))) == 1
    layer(tmp_path / "text", folder / "base", text_encoder=(SECOND,))
    assert sorted(calls) == ["train-00000", "train-00001", "train-00001", "train-00002"]
    assert tars(tmp_path / "text") == tars(folder / "text")
    assert not leftovers(tmp_path / "text")


def test_killed_at_random_instants_beside_another_process(raw: Path, tmp_path: Path, start: Any) -> None:
    finish(start, tmp_path / "base", raw)
    options: dict[str, Any] = {
        "beside": str(tmp_path / "base"),
        "text_encoder": ("second=toy",),
        "resolutions": (32,),
        "timeout": 1.0,
    }
    finish(start, tmp_path / "undisturbed", raw, **options)
    for number in random.SystemRandom().sample(range(2, 60), 3):
        print(f"at change {number}")
        output = tmp_path / f"killed-{number}"
        output.mkdir()
        both = [start(output, raw, die_at=number, **options), start(output, raw, **options)]
        for process in both:
            process.join(timeout=200)
        finish(start, output, raw, **options)
        assert tars(output) == tars(tmp_path / "undisturbed")
        assert (output / MANIFEST).read_bytes() == (tmp_path / "undisturbed" / MANIFEST).read_bytes()
        assert not leftovers(output)
        assert not findings(output, beside=str(tmp_path / "base"))


def test_a_row_that_fails_in_a_layer_alone_is_counted_there(folder: Path, raw: Path, tmp_path: Path) -> None:
    other = shutil.copytree(raw, tmp_path / "raw")
    path, image = other / "00000.tar", jpeg(2, (256, 256))
    data = path.read_bytes()
    assert data.count(image) == 1
    path.write_bytes(data.replace(image, b"<html>".ljust(len(image))))  # another size would be another source
    layer(tmp_path / "large", folder / "base", resolutions=(128,), data_dir=other)
    assert manifest_of(tmp_path / "large").splits["train"].rejected == {"undecodable": 4}
    joined = (folder / "base", folder / "text", tmp_path / "large")
    found = sorted(key for batch in batches(joined, resolution=112, drop_last=False) for key in batch["key"])
    whole = {key for batch in batches(folder / "whole", resolution=112) for key in batch["key"]}
    assert len(found) == 12 and whole - set(found) == {"00000-02"}


# --- the other commands ---


def findings(output: Path, **options: Any) -> list[str]:
    return [str(finding) for finding in verify.verify(verify.Config(str(output), **options)).findings]


def test_verify_proves_a_layer_whole_and_of_its_base(folder: Path, raw: Path, tmp_path: Path) -> None:
    for name in ("text", "large"):
        assert not findings(folder / name, beside=str(folder / "base"))
    other = made(tmp_path / "other", raw, text_encoder=("toy",), resolutions=(64,))
    assert "of another fingerprint" in findings(folder / "text", beside=str(other))[0]
    copy = shutil.copytree(folder / "text", tmp_path / "copy")
    for suffix in ("tar", "parquet"):
        shutil.copy(copy / f"train-00000-01.{suffix}", copy / f"train-00002-01.{suffix}")
    assert any(
        "other rows than those of the base" in line for line in findings(copy, beside=str(folder / "base"))
    )
    with pytest.raises(UsageError, match="is no layer"):
        findings(folder / "base", beside=str(folder / "base"))


def test_decode_holds_a_layers_captions_and_pictures_against_their_own(
    folder: Path, raw: Path, tmp_path: Path
) -> None:
    base = {"beside": str(folder / "base")}
    assert not findings(folder / "text", decode=6, text_encoder=(SECOND,), **base)
    source = {"decode": 6, "source": "builders/webdataset", "data_dir": raw}
    assert not findings(folder / "large", **source, **base)
    swapped = shutil.copytree(folder / "large", tmp_path / "large")
    one, other, *_ = pq.read_table(swapped / "train-00000-01.parquet", filters=[("status", "=", "ok")])[
        "key"
    ].to_pylist()
    name = next(field.member for field in manifest_of(swapped).fields)
    swap_members(swapped, f"{one}.{name}", f"{other}.{name}")
    found = findings(swapped, **source, **base)
    assert any(f"{one}: " in line and f"decodes to the source of {other}" in line for line in found)
    # Its rows get other captions.
    copy = shutil.copytree(folder / "text", tmp_path / "text")
    path = copy / "train-00000-01.parquet"
    table = pq.read_table(path)
    captions = pa.array([f"{n} ships that pass in the night" for n in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", captions), path)
    found = findings(copy, decode=6, text_encoder=(SECOND,), **base)
    assert any("its caption is not that of the base" in line for line in found)
    assert any("caption_latents_second is not that of its caption" in line for line in found)


@pytest.mark.parametrize("name", ["text", "large"])
def test_preview_and_card_of_a_layer(folder: Path, tmp_path: Path, name: str) -> None:
    preview.run(preview.Config(str(folder / name), to=tmp_path, num_samples=3))
    assert (tmp_path / "preview.png").stat().st_size > 1000
    assert "a caption of" in (tmp_path / "report.html").read_text()
    card = render_card(manifest_of(folder / name), "USER/REPO")
    assert manifest_of(folder / "base").fingerprint in card
    assert 'make_loader(("BASE", "hf://datasets/USER/REPO")' in card and "KEY.txt" not in card


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_others_read_a_layer(folder: Path, tmp_path: Path) -> None:
    files = sorted(str(path) for path in (folder / "text").glob("*.tar"))
    keys = [key for name in files for key in pq.read_table(Path(name).with_suffix(".parquet")).to_pylist()]
    expected = [row["key"] for row in keys if row["status"] == "ok"]
    read = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))
    assert read["__key__"] == expected
    stock = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in stock] == expected
    listed = subprocess.run(
        ["tar", "-tf", files[0]], check=True, text=True, capture_output=True
    ).stdout.split()
    assert {name.partition(".")[2] for name in listed} == {
        "caption_latents_second.npy",
        "caption_pooled_second.npy",
    }
    gc.collect()  # webdataset leaves its last file to the garbage collector


# --- what cannot be ---


def refused(match: str, kind: type[PrecomputeError], *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as error:
        layer(*arguments, **options)
    assert "\n" not in str(error.value) or kind is RecipeMismatch


def test_flags_that_the_base_decides_are_refused(folder: Path, raw: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "out", folder / "base"
    refused(
        "--limit: with --beside it is as the base has it",
        UsageError,
        out,
        base,
        text_encoder=(SECOND,),
        limit=3,
    )
    refused("--buckets: with", UsageError, out, base, resolutions=(128,), buckets=64)
    refused(
        "DATASET builders/demo: the captions lie in",
        UsageError,
        out,
        base,
        text_encoder=(SECOND,),
        dataset="builders/demo",
    )
    refused(
        "it has caption_latents already; give the encoder another NAME",
        UsageError,
        out,
        base,
        text_encoder=("toy",),
    )
    refused(
        "it has moments_112 already; give other --resolutions",
        UsageError,
        out,
        base,
        resolutions=(112,),
        data_dir=raw,
    )
    refused(
        "it has moments_112 already; what another --vae makes of that size is a dataset of its own",
        UsageError,
        out,
        base,
        resolutions=(112,),
        vae=str(save_tiny(tmp_path / "tiny")),
        data_dir=raw,
    )
    refused("it is a layer itself", UsageError, out, folder / "text", text_encoder=(SECOND,))
    refused(
        "--beside .*nothing: cannot list it", UsageError, out, tmp_path / "nothing", text_encoder=(SECOND,)
    )
    refused("has train", UsageError, out, base, text_encoder=(SECOND,), split="test")


def test_a_base_that_is_not_finished_is_refused(folder: Path, tmp_path: Path) -> None:
    base = shutil.copytree(folder / "base", tmp_path / "base")
    (base / "train-00001.json").unlink()
    found = json.loads((base / MANIFEST).read_text())
    split = found["splits"]["train"]
    kept = [shard for shard in split["shards"] if not shard["name"].startswith("train-00001")]
    samples, rows = (sum(shard[count] for shard in kept) for count in ("samples", "rows"))
    split |= {"units_done": 2, "complete": False, "shards": kept, "samples": samples, "rows": rows}
    split["rejected"] = {"too_small": rows - samples}
    (base / MANIFEST).write_text(json.dumps(found))
    refused(
        "2 of 3 units of split train are finished", UsageError, tmp_path / "out", base, text_encoder=(SECOND,)
    )


def test_a_base_that_changed_is_refused(folder: Path, raw: Path, tmp_path: Path) -> None:
    base = shutil.copytree(folder / "base", tmp_path / "base")
    path = base / "train-00001-01.parquet"
    table = pq.read_table(path)
    names = pa.array([f"other {n}" for n in range(len(table))])
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", names), path)
    refused("base has changed meanwhile", SourceError, tmp_path / "out", base, text_encoder=(SECOND,))
    found = json.loads((base / MANIFEST).read_text())
    for shard in found["splits"]["train"]["shards"]:
        if shard["name"] == path.stem:
            shard["parquet_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (base / MANIFEST).write_text(json.dumps(found))
    refused(r"plan\.base\.rows", RecipeMismatch, tmp_path / "out", base, text_encoder=(SECOND,))
    with pytest.raises(ValueError, match="base has changed since the layer"):
        make_loader((base, folder / "text"), 2)


def test_another_source_is_refused(folder: Path, raw: Path, tmp_path: Path) -> None:
    other = shutil.copytree(raw, tmp_path / "raw")
    (other / "00002.tar").unlink()
    refused(
        "another source|it has 2 units",
        UsageError,
        tmp_path / "out",
        folder / "base",
        resolutions=(128,),
        data_dir=other,
    )
