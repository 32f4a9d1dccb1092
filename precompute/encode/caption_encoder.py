"""One text encoder over the captions of a unit: each unique one once, and what is stored of a sample's, end to end."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.field_names import further_name
from loader.format import Field
from loader.npy import stored_dtype
from precompute.encode.caption_cache import CaptionCache
from precompute.encode.microbatch import Microbatches
from precompute.encode.stored import Array
from precompute.encode.text import TextEncoder
from precompute.encode.text_states import Launched

Arrays = dict[str, Array]
Found = list[tuple[Launched, int]]


class CaptionEncoder:
    """fields: what is stored of a sample. max_captions: of a sample; where more than one, those there are lie end to end.

    kind: of captions that are added to shards, which may be none of a sample; their fields are named after it.
    """

    def __init__(self, encoder: TextEncoder, max_captions: int, kind: str = "") -> None:
        # Where there may be none, there may not be always one.
        most = max(2, max_captions) if kind else max_captions
        self.encoder, self._several, self._kind = encoder, most > 1, kind
        self.fields = [
            replace(field, name=further_name(field.name, kind), captions=most) for field in encoder.fields
        ]
        self._parts = Microbatches(
            f"--text-encoder {encoder.spec.model}: one caption", "use a shorter length="
        )
        self._cache = CaptionCache()

    def start_unit(self) -> None:
        """Forget the captions seen: a unit's values may depend on nothing outside it."""
        self._cache = CaptionCache()

    def launch(self, captions: Sequence[str], most: int) -> Found:
        """Start the work; where the states of each caption will be. most: captions at once, so that several of a sample take no
        more memory than one."""
        groups = self.encoder.groups(self._cache.unknown(captions))
        for new in [group[n : n + most] for group in groups for n in range(0, len(group), most)]:
            self._cache.add(new, self._parts.run(len(new), lambda part: self.encoder.launch(new[part])))  # noqa: B023
        return self._cache.find(captions)

    def collect(
        self, captions: Sequence[str], found: Found, retry: Callable[[str, TextEncoder], Arrays]
    ) -> tuple[Arrays, dict[str, list[int]]]:
        """The arrays of a sample by field name, and the tokens of each caption by the name of the field of its states, 1 of each
        where only pooled outputs are stored; neither where a value is not finite. retry: encodes one caption in a wider precision,
        as far as it can."""
        parts = [
            launched.arrays(row, self.fields)
            if launched.finite[row]
            else self._named(retry(caption, self.encoder))
            for caption, (launched, row) in zip(captions, found, strict=True)
        ]
        if not all(parts):
            return {}, {}
        states = [field.name for field in self.fields if field.kind == "caption_latents"]
        if not states:
            return self._end_to_end(parts), {field.name: [1] * len(parts) for field in self.fields}
        return self._end_to_end(parts), {name: [len(part[name]) for part in parts] for name in states}

    def _named(self, arrays: Arrays) -> Arrays:
        return {further_name(name, self._kind): array for name, array in arrays.items()}

    def _end_to_end(self, parts: Sequence[Arrays]) -> Arrays:
        """States (T1 + T2 + ..., D) and pooled outputs (K, D) of the captions of a sample."""
        if not self._several:
            return parts[0]
        return {field.name: _joined(field, [part[field.name] for part in parts]) for field in self.fields}


def _joined(field: Field, arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if not arrays:
        return np.empty((0, *(n or 0 for n in field.stored_shape[1:])), stored_dtype(field.dtype))
    return np.concatenate(arrays) if field.kind == "caption_latents" else np.stack(arrays)
