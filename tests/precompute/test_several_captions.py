"""`--max-captions`: the captions of a picture end to end in one member, read by us, numpy, stock webdataset and datasets."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from loader import make_loader
from loader.format import Manifest
from precompute import run, verify
from precompute.encode.text import open_text_encoder
from tests.support import tiny_models
from tests.support.finished_folder import write_manifest, write_shards
from tests.support.judges import arrays_by_numpy
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

# Of each picture, as many as it has.
CAPTIONS = {
    "a": ["a cat", "a cup", "a woman with a cat and a cup"],
    "b": ["one"],
    "c": ["a cat", "the second", "the third, which is longer", "the fourth is not embedded"],
    "d": ["x", "x"],
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three encoders, one that keeps the real tokens alone, one with a pooled output, one of a pooled output alone; and the T5 that
    is one of them."""
    root = tmp_path_factory.mktemp("several")
    t5, clip = tiny_models.save_t5(root / "t5"), tiny_models.save_clip(root / "clip", projection=True)
    members = [
        (f"{key}.{suffix}", data)
        for number, (key, captions) in enumerate(CAPTIONS.items())
        for suffix, data in (("jpg", jpeg(number)), ("json", json.dumps({"caption": captions}).encode()))
    ]
    write_tar(root / "raw" / "0.tar", members)
    config = run.Config(
        "builders/webdataset",
        root / "latents",
        data_dir=root / "raw",
        vae="toy",
        text_encoder=(f"t5={t5}", f"{clip}?pooled", f"only={clip}?pooled=only"),
        resolutions=(64, 128),
        dtype="float32",
        max_captions=3,
    )
    run.run(config)
    return config.output, t5


def findings_of(folder: Path, **flags: Any) -> list[str]:
    return [str(finding) for finding in verify.verify(verify.Config(str(folder), **flags)).findings]


def arrays_of(shards: Path) -> dict[str, dict[str, Any]]:
    """Key -> member -> array or JSON."""
    return {key.removeprefix("0-"): members for key, members in arrays_by_numpy(shards).items()}


def test_states_lie_end_to_end_and_their_lengths_are_told(shards: tuple[Path, Path]) -> None:
    output, model = shards
    t5 = open_text_encoder(str(model))
    rows = {
        row["key"].removeprefix("0-"): row
        for row in pq.read_table(output / "train-00000.parquet").to_pylist()
    }
    for key, members in arrays_of(output).items():
        row, about, embedded = rows[key], json.loads(members["json"]), CAPTIONS[key][:3]
        assert row["captions"] == CAPTIONS[key] and row["caption"] == CAPTIONS[key][0]
        assert row["caption_kinds"] == about["caption_kinds"] == ["caption"] * len(CAPTIONS[key])
        alone = [one["caption_latents"] for one in t5.encode(embedded)]
        assert row["caption_tokens_t5"] == about["caption_tokens_t5"] == [len(states) for states in alone]
        np.testing.assert_allclose(members["caption_latents_t5.npy"], np.concatenate(alone), atol=2e-3)
        assert row["caption_tokens"] == about["caption_tokens"] == [77] * len(embedded)
        assert members["caption_latents.npy"].shape == (77 * len(embedded), 16)
        assert members["caption_pooled.npy"].shape[0] == len(embedded)
        assert row["caption_tokens_only"] == about["caption_tokens_only"] == [1] * len(embedded)
        np.testing.assert_array_equal(members["caption_pooled_only.npy"], members["caption_pooled.npy"])
        assert row["crop_64"] == row["crop_128"] == about["crop"]
        if key == "d":
            np.testing.assert_array_equal(*members["caption_pooled.npy"])
    manifest = Manifest.from_json((output / "manifest.json").read_bytes())
    assert manifest.recipe["max_captions"] == 3
    assert {f.name: (f.shape, f.captions) for f in manifest.fields if f.kind == "caption_latents"} == {
        "caption_latents_t5": ((None, 16), 3),
        "caption_latents": ((77, 16), 3),
    }


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_readers_read_them(shards: tuple[Path, Path], tmp_path: Path) -> None:
    files = [str(path) for path in sorted(shards[0].glob("*.tar"))]
    expected = [len(captions[:3]) for captions in CAPTIONS.values()]
    read = list(webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode())
    assert [len(sample["caption_pooled.npy"]) for sample in read] == expected
    rows = datasets.load_dataset("webdataset", data_files=files, split="train", cache_dir=str(tmp_path))
    assert [len(row["caption_latents.npy"]) for row in rows] == [77 * count for count in expected]


def test_verify_holds_each_caption_against_its_own_embedding(
    shards: tuple[Path, Path], tmp_path: Path
) -> None:
    output, model = shards
    clip = model.parent / "clip"
    encoders = (f"t5={model}", f"{clip}?pooled", f"only={clip}?pooled=only")
    where = {"source": "builders/webdataset", "data_dir": output.parent / "raw"}

    def findings(folder: Path) -> list[str]:
        return findings_of(folder, decode=8, text_encoder=encoders, **where)

    assert findings(output) == []
    broken = shutil.copytree(output, tmp_path / "broken")
    swap(broken / "train-00000.tar", "0-a.caption_latents.npy", lambda states: np.roll(states, 77, axis=0))
    told = [line for line in findings(broken) if "0-a" in line and "caption_latents is not" in line]
    assert len(told) == 3 and "nearest to that of caption" in told[0]
    swap(broken / "train-00000.tar", "0-c.caption_pooled_only.npy", lambda pooled: pooled[::-1])
    told = [line for line in findings(broken) if "0-c" in line and "caption_pooled_only is not" in line]
    assert len(told) == 2 and "nearest to that of caption 3" in told[0]


def test_a_pooled_output_alone_is_drawn_as_one_with_its_states(shards: tuple[Path, Path]) -> None:
    output, _ = shards
    for options in ({"captions": "first"}, {"captions": "random"}):
        alone, beside = (
            make_loader(
                output,
                2,
                resolution=64,
                seed=5,
                extras=["key", "caption"],
                shuffle=False,
                drop_last=False,
                **options,
                **fields,
            )
            for fields in ({"text_encoders": [], "pooled": ["only"]}, {"text_encoders": [""], "pooled": True})
        )
        drawn = set()
        for _ in range(4):
            for one, other in zip(alone, beside, strict=True):
                assert one["caption"] == other["caption"]
                assert torch.equal(one["caption_pooled_only"], other["caption_pooled"])
                drawn |= set(zip(one["key"], one["caption"], strict=True))
        firsts = {(f"0-{key}", captions[0]) for key, captions in CAPTIONS.items()}
        assert drawn == firsts if options["captions"] == "first" else len(drawn) > len(firsts)


def swap(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change the values of a member, in place."""
    with tarfile.open(path) as tar:
        member = tar.getmember(name)
        data = tar.extractfile(member).read()
    array = change(np.load(io.BytesIO(data)))
    with path.open("r+b") as file:
        file.seek(member.offset_data + len(data) - array.nbytes)
        file.write(array.tobytes())


def test_shards_from_before_there_were_such_columns_are_whole(tmp_path: Path) -> None:
    old = write_shards(tmp_path / "old", units=1)
    sidecar, marker = old / "train-00000.parquet", old / "train-00000.json"
    table = pq.read_table(sidecar)
    new = [name for name in table.column_names if name.startswith(("caption_", "captions", "crop_", "phash"))]
    assert sorted(new) == ["caption_kinds", "caption_tokens", "captions", "crop_32", "phash"]
    pq.write_table(table.drop_columns(new), sidecar)
    known = json.loads(marker.read_text())
    known["shards"][0]["parquet_sha256"] = hashlib.sha256(sidecar.read_bytes()).hexdigest()
    for field in known["fields"]:
        del field["captions"]
    marker.write_text(json.dumps(known))
    write_manifest(old)
    assert findings_of(old) == []
    batch = next(iter(make_loader(old, batch_size=2, resolution=32, extras=["caption"])))
    assert batch["caption"][0].startswith("caption u0-")
