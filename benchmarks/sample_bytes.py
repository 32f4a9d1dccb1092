"""Bytes of one sample as they lie in the tar, headers and padding included, from shards that are really written.

python benchmarks/sample_bytes.py
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from precompute.shards.output_folder import OutputFolder
from precompute.shards.unit_writer import SidecarRow, UnitWriter

SAMPLES = 200
SDXL_TEXT = {"caption_latents": (77, 768), "caption_latents_2": (77, 1280), "caption_pooled_2": (1280,)}
MOMENTS = {"moments_256": (8, 32, 32), "moments_512": (8, 64, 64)}
LATENTS = {"latents_256": (4, 32, 32)}
FORMATS: dict[str, dict[str, tuple[int, ...]]] = {
    "default: SDXL's moments at 256 and 512, its two text encoders": {**MOMENTS, **SDXL_TEXT},
    "the same at 256 only": {"moments_256": MOMENTS["moments_256"], **SDXL_TEXT},
    "--posterior sample at 256 only": {**LATENTS, **SDXL_TEXT},
    "SD 1.5: moments at 256 and 512, CLIP-L": {**MOMENTS, "caption_latents": (77, 768)},
    "16 channels (SD3, FLUX.1): moments at 512, T5-XXL of 25 tokens": {
        "moments_512": (32, 64, 64),
        "caption_latents": (25, 4096),
    },
}


def bytes_of(fields: dict[str, tuple[int, ...]]) -> float:
    """A sample's share of its tar, with a caption of 100 letters. fields: shapes by name, float16."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = {f"{name}.npy": np.zeros(shape, np.float16) for name, shape in fields.items()}
        writer = UnitWriter(OutputFolder(Path(folder)), 0, [*fields, "txt", "json"], SAMPLES, "benchmark")
        for index in range(SAMPLES):
            row = SidecarRow(f"{index:09d}", "a" * 100, 512, 512, "00000.tar/00000.jpg")
            writer.write(row, {**arrays, "txt": b"a" * 100, "json": b"{" + b" " * 150 + b"}"})
        writer.commit({}, [], {}, {})
        (tar,) = Path(folder).glob("*.tar")
        return tar.stat().st_size / SAMPLES


if __name__ == "__main__":
    print(f"{'':<66}{'a sample':>12}{'1 million':>12}{'37 million':>12}{'1 billion':>12}")
    for name, fields in FORMATS.items():
        size = bytes_of(fields)
        totals = (f"{size * count / 1e12:.3g} TB" for count in (1e6, 37e6, 1e9))
        print(f"{name:<66}{size / 1024:>8.1f} KiB" + "".join(f"{total:>12}" for total in totals))
