"""Every extra on every kind of dataset: a value of its documented kind, or one line that names the shards, the extra and a cure."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from loader import DataError, make_loader
from loader.extras import read_extras
from tests.support.keyed_shards import FIELDS, write_shards

EXTRAS = (
    "key",
    "caption",
    "caption_kind",
    "size_conditioning",
    "width",
    "source",
    "captions",
    "crop_256",
    "url",
)
KEPT = [field for field in FIELDS if field.name in ("latents_512", "caption_latents")]


def ours(folder: Path) -> Path:
    return write_shards(folder, [5], fields=KEPT, rejected=0)


def sidecar_with(column: str, value: Any) -> Callable[[Path], Path]:
    """Shards whose sidecar says one thing of all samples."""

    def make(folder: Path) -> Path:
        path = ours(folder) / "train-00000.parquet"
        table = pq.read_table(path)
        index = table.column_names.index(column)
        values = pa.array([value] * len(table), table.schema.field(column).type)
        table = table.set_column(index, table.schema.field(column), values)
        pq.write_table(table, path)
        return folder

    return make


def no_sidecar(folder: Path) -> Path:
    (ours(folder) / "train-00000.parquet").unlink()
    return folder


def foreign(members: dict[str, Any]) -> Callable[[Path], Path]:
    """Tars by webdataset's own writer, with an image latent and these members."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        with webdataset.ShardWriter(str(folder / "x-%05d.tar"), maxcount=3, verbose=0) as writer:
            for number in range(5):
                arrays = {"latents_512.npy": np.zeros((4, 64, 64), np.float16)}
                arrays["caption_latents.npy"] = np.zeros((7, 16), np.float16)
                writer.write({"__key__": f"k{number}", **arrays, **members})
        return folder

    return make


KINDS: dict[str, Callable[[Path], Path]] = {
    "plain": ours,
    "without a crop": sidecar_with("crop_512", None),
    "with half a crop": sidecar_with("crop_512", [1, 2]),
    "with an empty crop": sidecar_with("crop_512", [0, 0, 0, 0]),
    "without a width": sidecar_with("width", None),
    "without a caption": sidecar_with("caption", None),
    "with broken extras": sidecar_with("extras", "[1"),
    "with extras that are none": sidecar_with("extras", "[1]"),
    "without a sidecar": no_sidecar,
    "foreign": foreign({"txt": "a picture"}),
    "foreign, without text": foreign({}),
    "foreign, with json": foreign({"txt": "a picture", "json": {"width": 3, "crop": [0, 0, 1, 1]}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_extra_is_given_or_its_lack_is_told(tmp_path: Path, kind: str) -> None:
    path = KINDS[kind](tmp_path / "a")
    given = set()
    for extra in EXTRAS:
        try:
            batches = make_loader(path, 5, resolution=512, extras=[extra], shuffle=False, on_error="raise")
            value = next(iter(batches))[extra]
            batches.close()
        except (ValueError, DataError) as error:
            line = str(error)
            assert "\n" not in line and len(line) < 400
            assert str(path) in line or "there are key, caption" in line, "where, or what there is instead"
            wanted = (
                "txt" if extra == "caption" else "extras" if "extras" in kind and extra == "url" else extra
            )
            assert wanted in line, line
            continue
        given.add(extra)
        if extra == "size_conditioning":
            assert isinstance(value, torch.Tensor) and value.shape == (5, 6) and bool(value.isfinite().all())
        else:
            assert isinstance(value, list) and len(value) == 5
        if extra in ("key", "caption", "caption_kind"):
            assert all(isinstance(one, str) and one != "None" for one in value)
    assert {"key"} <= given and ("caption" in given or kind == "foreign, without text")
    assert kind.startswith("foreign") == ("width" not in given)


def test_what_the_sidecar_does_not_say_is_read_from_the_sample(tmp_path: Path) -> None:
    """Shards of which all sidecars are lost, with `KEY.json` in the tar as precompute writes it."""
    path = ours(tmp_path / "a")
    sidecar = path / "train-00000.parquet"
    table = pq.read_table(sidecar)
    facts = json.dumps({"width": 100, "height": 64, "crops": {"512": [10, 0, 74, 64]}}).encode()
    tar = path / "train-00000.tar"
    with tarfile.open(tar, "a") as archive:
        member = tarfile.TarInfo("k000000.json")
        member.size = len(facts)
        archive.addfile(member, io.BytesIO(facts))
    with tarfile.open(tar) as archive:
        place = archive.getmember("k000000.json").offset_data
    for name, value in (("offset_json", place), ("size_json", len(facts))):
        table = table.append_column(name, pa.array([value] * len(table), pa.int64()))
    for name in ("width", "height"):
        column = table.column_names.index(name)
        table = table.set_column(column, table.schema.field(name), pa.nulls(len(table), pa.int32()))
    pq.write_table(table, sidecar)
    manifest = path / "manifest.json"
    obj = json.loads(manifest.read_text())
    obj["splits"]["train"]["shards"][0]["bytes"] = tar.stat().st_size
    manifest.write_text(json.dumps(obj))
    batch = next(iter(make_loader(path, 5, resolution=512, extras=["size_conditioning"], shuffle=False)))
    assert batch["size_conditioning"].tolist() == [[64, 100, 0, 80, 512, 512]] * 5


def test_what_a_publisher_wrote_beside_an_image_may_hold_nan_and_anything() -> None:
    assert read_extras('{"json": "{\\"aesthetic\\": NaN, \\"similarity\\": 0.3}", "url": "x"}') == {
        "json": '{"aesthetic": NaN, "similarity": 0.3}',
        "url": "x",
        "aesthetic": None,
        "similarity": 0.3,
    }
    for odd in ("[1]", "no json", "[" * 100_000):
        assert read_extras(json.dumps({"json": odd})) == {"json": odd}
