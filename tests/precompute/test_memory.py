"""Memory is flat in the number of rows: what 12,000 take at most is what 1,000 do, but for a little."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.core.record import Record
from precompute.encode.batch_encoder import BatchEncoder
from precompute.encode.image import open_image_encoder
from precompute.encode.text import open_text_encoder
from precompute.input.pixels import read_picture
from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.runtime.pipeline import Pipeline
from precompute.runtime.unit_output import Output
from precompute.shards.output_folder import OutputFolder
from tests.support.raw.photos import jpeg

resource = pytest.importorskip("resource")

ROWS = 500  # of a unit
FEW, MANY = 1_000, 12_000
BOUND = 11.0  # MB: a kilobyte a row would not pass


class Rows:
    """Units of rows that all differ in key and caption."""

    def __init__(self, number: int) -> None:
        self.units = [Unit(index, index) for index in range(number // ROWS)]
        self.plan = {"units": len(self.units)}
        self._image = jpeg(0, (64, 64))

    def rows(self, unit: Unit) -> Iterator[Record]:
        for row in range(ROWS):
            yield Record(f"{unit.index}-{row}", f"caption {row} of {unit.index}", self._image)


def encode(folder: Path, number: int, encoder: BatchEncoder) -> None:
    folder.mkdir()
    records: Any = Rows(number)
    leases = Leases(OutputFolder(folder), records.units)

    def delete() -> None:
        """Delete tars as --delete-pushed does: no need to fill a disk."""
        for path in folder.glob("*.tar"):
            path.unlink()

    output = Output(OutputFolder(folder), 4096, {}, records.plan, 32, on_commit=delete)

    def read(record: Record) -> Any:
        return read_picture(record.image or b"", [32])

    Pipeline(records, leases, encoder, output, read, 2, lambda stats: None).run()
    leases.close()


def measure(folder: Path, peaks: Any) -> None:
    """Peak resident MB of this process after few and after many rows."""
    torch.set_num_threads(1)
    encoder = BatchEncoder(open_image_encoder("toy"), [open_text_encoder("toy")], [32], "moments", 0)
    for number in (FEW, MANY):
        encode(folder / str(number), number, encoder)
        peaks.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def test_peak_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    peaks = context.Queue()
    process = context.Process(target=measure, args=(tmp_path, peaks))
    process.start()
    few, many = peaks.get(timeout=120), peaks.get(timeout=300)
    process.join()
    print(f"{few:.0f} MB after {FEW:,} rows, {many:.0f} MB after {MANY:,}")
    assert process.exitcode == 0
    assert len(list((tmp_path / str(MANY)).glob("train-*.json"))) == MANY // ROWS
    assert many - few < BOUND
