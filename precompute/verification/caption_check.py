"""Are captions and embeddings those of their own sample? Each is held against the source's record and encoded again."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from builders.core.record import Record
from loader.field_names import further_name
from loader.format import NULL_CAPTION, Field, FormatError
from loader.npy import as_numbers
from loader.null_caption import read_null_caption
from precompute.encode.text import TextEncoder
from precompute.shards.sample_reader import Sample, kind_of_text
from precompute.shards.store import Store
from precompute.verification.check_folder import READING, Finding, redo, rerun

TEXT = 0.15  # of its norm: bfloat16 on another device is within 0.03


def check_texts(samples: Sequence[Sample], records: Mapping[str, Record]) -> Iterator[Finding]:
    """Each caption is the one that the source has for its key: a swapped one agrees with a swapped embedding."""
    for sample in samples:
        record = records.get(sample.key)
        if record is not None and record.caption != sample.caption:
            what = "its caption is not the one that the source has for it"
            yield Finding(sample.shard, sample.key, what, redo(sample.stem))


def check_caption_states(
    samples: Sequence[Sample], encoder: TextEncoder, fields: Sequence[Field]
) -> Iterator[Finding]:
    """Encode the captions again: each embedding must be that of its own caption, not of another, of the sample's or of others'."""
    captions = [(sample, number, text) for sample in samples for number, text in enumerate(sample.captions)]
    if not captions:
        return
    again = encoder.encode([text for _, _, text in captions])
    kind = kind_of_text(fields)
    names = {further_name(spec.name, kind): spec.name for spec in encoder.fields}
    for spec in [spec for spec in fields if spec.name in names]:
        for place, (sample, number, text) in enumerate(captions):
            if spec.name not in sample.arrays:
                continue
            stored = sample.of_caption(spec, number)
            distances = [
                distance(stored, as_numbers(arrays[names[spec.name]], spec.dtype)) for arrays in again
            ]
            nearest = int(np.argmin(distances))
            if distances[place] > TEXT or distances[nearest] < distances[place] / 2:
                nearer, its, words = captions[nearest]
                which = nearer.key if nearer is not sample else f"caption {its + 1}"
                other = f"; it is nearest to that of {which}" if words != text else ""
                mine = f"caption {number + 1}" if spec.captions > 1 else "its caption"
                what = f"{spec.name} is not that of {mine} (off by {min(distances[place], 9.99):.0%}){other}"
                yield Finding(sample.shard, sample.key, what, redo(sample.stem))


def check_null(store: Store, encoder: TextEncoder) -> Iterator[Finding]:
    """Encode the empty caption again. What is wrong with the file itself has been found already."""
    try:
        arrays = read_null_caption(store.read(NULL_CAPTION), encoder.fields)
    except (FormatError, *READING):
        return
    again = encoder.encode([""])[0]
    for spec in encoder.fields:
        stored, array = (as_numbers(of[spec.name], spec.dtype) for of in (arrays, again))
        if (off := distance(stored, array)) > TEXT:
            what = f"{spec.name} is not that of the empty caption (off by {min(off, 9.99):.0%})"
            yield Finding(NULL_CAPTION, "", what, f"remove it and {rerun()}: it is made anew")


def distance(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """How far `a` is from `b`, as a share of the norm of `b`; infinite where it is of another shape."""
    if a.shape != b.shape:
        return float("inf")
    b = b.astype(np.float32)
    return float(np.linalg.norm(a.astype(np.float32) - b) / max(float(np.linalg.norm(b)), 1e-6))
