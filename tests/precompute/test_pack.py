"""`pack`: shards and layers as one dataset; the same members byte for byte, each sample once, in an order that only the seed deci
decides.
"""

import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from loader import make_loader
from loader.format import MANIFEST, Manifest
from precompute import pack, run, verify
from precompute.errors import PrecomputeError, RecipeMismatch, UsageError
from precompute.shards.unit_writer import UnitWriter
from tests.support.launching import leftovers, tars
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

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


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """Key -> extension -> contents in the order of the shards, by tarfile alone."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                stream = tar.extractfile(member)
                assert stream is not None and extension not in found.setdefault(key, {})
                found[key][extension] = stream.read()
    return found


def manifest_of(folder: Path) -> Manifest:
    return Manifest.from_json((folder / MANIFEST).read_bytes())


def findings(folder: Path) -> list[str]:
    return [str(finding) for finding in verify.verify(verify.Config(str(folder)), verify.Report("", ""))]


def test_base_and_layer_packed_are_what_is_made_at_once(folder: Path, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", folder / "base", folder / "text", samples_per_shard=5)
    whole = samples(folder / "whole")
    assert list(samples(out).items()) == list(whole.items())
    assert [list(members) for members in samples(out).values()] == [
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


def test_shuffled_by_a_seed_over_all_shards(folder: Path, tmp_path: Path) -> None:
    orders = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = packed(tmp_path / name, folder / "base", folder / "text", shuffle=seed, samples_per_shard=6)
        orders[name] = list(samples(out))
        assert samples(out) == samples(folder / "whole")
        assert not findings(out)
    assert tars(tmp_path / "a") == tars(tmp_path / "b")
    assert orders["a"] != orders["c"] and orders["a"] != sorted(orders["a"])
    assert len({key[:5] for key in orders["a"][:6]}) > 1


def test_selected(folder: Path, tmp_path: Path) -> None:
    out = packed(tmp_path / "out", folder / "base", where="height >= 512", samples_per_shard=100)
    assert list(samples(out)) == ["00000-04", "00001-14", "00002-24"]
    keys = tmp_path / "keys.txt"
    keys.write_text("00001-10\n00002-21\nno-such\n")
    out = packed(tmp_path / "some", folder / "base", folder / "text", keys=keys)
    assert list(samples(out)) == ["00001-10", "00002-21"]
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
    assert samples(out) == samples(folder / "buckets")
    assert not findings(out)
    shapes = {tuple(batch["image_latents"].shape[2:]) for batch in make_loader(out, 3)}
    assert len(shapes) == 2


def test_interrupted_it_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"shuffle": 0, "samples_per_shard": 3}
    undisturbed = packed(tmp_path / "whole", folder / "base", folder / "text", **options)
    commit, calls = UnitWriter.commit, []

    def breaks(self: UnitWriter, *arguments: Any) -> Any:
        calls.append(self.stem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(self, *arguments)

    monkeypatch.setattr(UnitWriter, "commit", breaks)
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path / "out", folder / "base", folder / "text", **options)
    assert len(list((tmp_path / "out").glob("train-*.json"))) == 1
    packed(tmp_path / "out", folder / "base", folder / "text", **options)
    assert len(calls) == 5
    assert tars(tmp_path / "out") == tars(undisturbed)
    assert not leftovers(tmp_path / "out")


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
    assert read["__key__"] == list(samples(out))
    expected = np.load(io.BytesIO(samples(out)[read[0]["__key__"]]["moments_64.npy"]))
    assert np.array_equal(np.asarray(read[0]["moments_64.npy"], np.float16), expected)
