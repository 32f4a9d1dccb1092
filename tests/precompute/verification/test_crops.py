"""Where the crops of a layer lie, its base says, whatever the names of its shards."""

import io
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from loader.sidecar_schema import sidecar_schema
from precompute.shards.sample_reader import Sample
from precompute.shards.store import Store
from precompute.verification.feature_check import Crops


def sidecar(key: str, crop: list[int]) -> bytes:
    row: dict[str, Any] = {"key": key, "status": "ok", "crop_64": crop}
    schema = sidecar_schema(["moments_64"])
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row], schema=schema), out)
    return out.getvalue()


def test_a_layer_whose_shards_have_other_names_finds_its_crops() -> None:
    files = {
        "train-00003-50.parquet": sidecar("a", [1, 2, 65, 66]),
        "train-00003-02.parquet": sidecar("b", [3, 4, 67, 68]),
        "train-000030.parquet": b"of another unit",
        "train-00003.json": b"{}",
    }
    base = cast(Store, SimpleNamespace(files=files, read=files.__getitem__))
    crops = Crops({"crop": "random"}, base)
    for key, crop in (("a", [1, 2, 65, 66]), ("b", [3, 4, 67, 68])):
        assert crops.of(Sample("train-00003", 3, "train-00003-51", key, "", {}, {})) == tuple(crop)
    assert crops.of(Sample("train-00004", 4, "train-00004", "a", "", {}, {})) is None
