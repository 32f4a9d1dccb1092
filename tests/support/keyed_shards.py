"""Shards of made-up arrays, written by precompute's own writer. Each sample's values tell its key, so a mix-up shows."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from loader.format import MANIFEST, Field, Manifest, npy_bytes
from loader.joined import rows_hash
from precompute.shards.markers import manifest_of
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.unit_writer import SidecarRow, UnitWriter

T, D = 4, 6
SCALE = 0.13025


def arrays(key: str, tokens: int = T, side: int = 4) -> dict[str, Any]:
    """The members of sample `key`, as precompute would have encoded them."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    mean, std = rng.normal(0, 3, (4, side, side)), rng.uniform(0.1, 0.5, (4, side, side))
    return {
        "moments_256": np.concatenate([mean, std]).astype(np.float16),
        "moments_256_flipped": np.concatenate([mean[..., ::-1], std[..., ::-1]]).astype(np.float16),
        "latents_512": rng.normal(size=(4, 2 * side, 2 * side)).astype(np.float16),
        "caption_latents": rng.normal(size=(tokens, D)).astype(np.float16),
        "caption_latents_t5": rng.normal(size=(1 + zlib.crc32(key.encode()) % T, D)).astype(np.float16),
        "caption_pooled": rng.normal(size=D).astype(np.float16),
    }


FIELDS = (
    Field("moments_256", "moments", "float16", (8, 4, 4), SCALE),
    Field("moments_256_flipped", "moments", "float16", (8, 4, 4), SCALE),
    Field("latents_512", "latents", "float16", (4, 8, 8)),
    Field("caption_latents", "caption_latents", "float16", (T, D)),
    Field("caption_latents_t5", "caption_latents", "float16", (None, D)),
    Field("caption_pooled", "caption_pooled", "float16", (D,)),
)


def write_shards(
    folder: Path,
    sizes: Sequence[int],
    *,
    prefix: str = "k",
    recipe: dict[str, Any] | None = None,
    fields: Sequence[Field] = FIELDS,
    rejected: int = 1,
    stored: Callable[[Any], Any] = lambda array: array,
) -> Path:
    """One unit, hence one shard, for each size, with `rejected` rejected rows in each. stored: what is written for an array."""
    folder.mkdir(parents=True, exist_ok=True)
    made: Any = recipe or {"dataset": {"path": prefix}, "vae": "made-up"}
    names, markers, number = [field.name for field in fields], [], 0
    for unit, size in enumerate(sizes):
        writer = UnitWriter(OutputFolder(folder), unit, [*names, "txt"], 1 << 20, "test")
        for index in range(size + rejected):
            key = f"{prefix}{number:06d}"
            number += 1
            if index < rejected:
                writer.reject(SidecarRow(key), "too_small")
                continue
            values = arrays(key)
            members = {f"{name}.npy": npy_bytes(stored(values[name])) for name in names}
            writer.write(
                SidecarRow(key, f"a picture of {key}"), {**members, "txt": f"a picture of {key}".encode()}
            )
        markers.append(writer.commit(made, fields, {"units": len(sizes)}, {}))
        writer.discard()
    write_file(folder / MANIFEST, manifest_of(made, fields, markers).to_json().encode())
    return folder


def write_layer(
    folder: Path, base: Path, names: Sequence[str], lost: Sequence[str] = (), units: int | None = None
) -> Path:
    """A layer beside shards that `write_shards` has written with other fields: the fields called `names`, without the keys in
    `lost`; of the first `units` units."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest.from_json((base / MANIFEST).read_bytes())
    recipe: Any = {
        "base": manifest.fingerprint,
        "dataset": manifest.recipe["dataset"],
        "text_encoders": [{"name": name} for name in names],
    }
    split, markers = manifest.splits["train"], []
    plan: Any = {"units": len(split.shards), "base": {"plan": split.plan, "rows": rows_hash(split.shards)}}
    fields = [field for field in FIELDS if field.name in names]
    for unit, shard in enumerate(split.shards[:units]):
        writer = UnitWriter(OutputFolder(folder), unit, names, 1 << 20, "test")
        for row in pq.read_table(base / f"{shard.name}.parquet").to_pylist():
            key, ok = row["key"], row["status"] == "ok"
            if not ok or key in lost:
                writer.reject(SidecarRow(key, row["caption"]), "non_finite" if ok else row["status"])
                continue
            values = arrays(key)
            writer.write(
                SidecarRow(key, row["caption"]), {f"{name}.npy": npy_bytes(values[name]) for name in names}
            )
        markers.append(writer.commit(recipe, fields, plan, {}))
        writer.discard()
    write_file(folder / MANIFEST, manifest_of(recipe, fields, markers).to_json().encode())
    return folder
