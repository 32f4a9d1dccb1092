"""Shards of made-up arrays, written as precompute writes them: what the tests of verify, push and preview work on."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loader.format import MANIFEST, NULL_CAPTION, Field, Manifest, npy_bytes
from precompute.shards.markers import manifest_of, marker_paths, read_marker
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.unit_writer import SidecarRow, UnitWriter

FIELDS = (
    Field("moments_32", "moments", "float16", (8, 4, 4), 0.5, 0.0),
    Field("caption_latents", "caption_latents", "float16", (None, 6)),
)
RECIPE = {
    "dataset": {"path": "builders/demo", "name": "default", "version": "1.0.0", "caption_cleaning": "light"},
    "image_encoder": {"model": "toy", "weights": "0" * 64, "dtype": "float32", "scale": 0.5, "shift": 0.0},
    "text_encoders": [{"model": "toy", "weights": "1" * 64, "name": "", "dtype": "float32", "length": 77}],
    "posterior": "moments",
    "resolutions": [32],
    "crop": "center",
}


def members_of(key: str, caption: str, unit: int = 0, index: int = 0) -> dict[str, bytes]:
    """What a sample's members hold; the same for the same arguments."""
    random = np.random.default_rng([unit, index])
    moments = random.normal(size=(8, 4, 4)).astype(np.float16)
    moments[4:] = np.abs(moments[4:])
    text = random.normal(size=(2 + index, 6)).astype(np.float16)
    facts = {"key": key, "width": 640, "height": 480}
    return {
        "moments_32.npy": npy_bytes(moments),
        "caption_latents.npy": npy_bytes(text),
        "txt": caption.encode(),
        "json": json.dumps(facts).encode(),
    }


@contextlib.contextmanager
def unit_writer(
    output: Path, unit: int, samples_per_shard: int = 100, split: str = "train"
) -> Iterator[UnitWriter]:
    names = [*(field.name for field in FIELDS), "txt", "json"]
    writer = UnitWriter(OutputFolder(output, split), unit, names, samples_per_shard, f"token{unit}")
    try:
        yield writer
    finally:
        writer.discard()


def write_unit(
    output: Path,
    unit: int,
    units: int = 3,
    samples: int = 5,
    samples_per_shard: int = 100,
    recipe: Any = RECIPE,
    keys: list[str] | None = None,
    caption: str = "caption {key}",
) -> None:
    """One unit of `samples` samples and one row rejected as too small; then the manifest."""
    plan: Any = {
        "dataset": "builders/demo",
        "units": units,
        "prepared": False,
        "limit": None,
        "samples_per_shard": 100,
    }
    with unit_writer(output, unit, samples_per_shard) as writer:
        for index in range(samples):
            key = keys[index] if keys else f"u{unit}-{index}"
            text = caption.format(key=key)
            row = SidecarRow(key, text, 640, 480, "archive.tar")
            writer.write(row, members_of(key, text, unit, index))
        writer.reject(SidecarRow(f"u{unit}-small", "too small", 8, 8, "archive.tar"), "too_small")
        writer.commit(recipe, FIELDS, plan, {"seconds": 2.0, "images_per_second": samples / 2})
    write_manifest(output)


def null_caption() -> bytes:
    """The empty caption's two tokens."""
    out = io.BytesIO()
    np.savez(out, caption_latents=np.linspace(-1, 1, 12).reshape(2, 6).astype(np.float16))
    return out.getvalue()


def write_manifest(output: Path) -> Manifest:
    markers = [read_marker(path) for path in marker_paths(output)]
    null = null_caption()
    write_file(output / NULL_CAPTION, null)
    manifest = manifest_of(markers[0].recipe, FIELDS, markers)
    manifest = replace(manifest, null_caption=hashlib.sha256(null).hexdigest())
    write_file(output / MANIFEST, manifest.to_json().encode())
    return manifest


def write_shards(output: Path, units: int = 3, **options: Any) -> Path:
    """A whole dataset of `units` units."""
    output.mkdir(parents=True, exist_ok=True)
    for unit in range(units):
        write_unit(output, unit, units, **options)
    return output
