"""Which caption of a sample: the first, any, or one by the weights of their kinds; and where in its members it lies.

A number in [0, 1) that belongs to the sample's position and epoch alone decides it, the same for all text encoders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from loader.format import Field
from loader.order import I64
from loader.sidecar import Table, ragged
from loader.sidecar_schema import tokens_column

F64 = npt.NDArray[np.float64]
Captions = Literal["first", "random"] | Mapping[str, float]


@dataclass(frozen=True)
class CaptionChoice:
    """Which caption is drawn of those that are embedded.

    "first": the first. "random": each as likely. Weights by kind: of the kinds that a sample has, each in proportion to its
    weight, and of several captions of that kind each as likely; where it has none of weight, any of its captions.
    """

    captions: Captions = "first"

    @property
    def columns(self) -> list[str]:
        """Columns of the sidecar that it takes to choose."""
        return ["caption_kinds"] if isinstance(self.captions, Mapping) else []

    def choose(self, table: Table, fields: Sequence[Field], samples: I64, chance: F64) -> I64:
        """The number of the caption of each sample, by a number in [0, 1) of each."""
        embedded = table.derived("embedded", lambda: Embedded.of(table, fields))
        if embedded is None or self.captions == "first":
            return np.zeros(len(samples), np.int64)
        ends = table.derived("caption ends", lambda: np.cumsum([0.0, *self._shares(table, embedded)]))
        rows = table.rows[samples]
        low, high = ends[embedded.first[rows]], ends[embedded.first[rows + 1]]
        aim = np.minimum(low + chance * (high - low), np.nextafter(high, low))
        return np.searchsorted(ends[1:], aim, side="right") - embedded.first[rows]

    def _shares(self, table: Table, embedded: "Embedded") -> F64:
        """The share of each embedded caption of the shard, on a scale of its row's own."""
        if not isinstance(self.captions, Mapping):
            return embedded.is_drawn.astype(np.float64)
        shares = np.zeros(len(embedded.row))
        kinds = embedded.kinds(table)
        for kind, weight in self.captions.items():
            mine = np.flatnonzero(embedded.is_drawn & (kinds == kind))
            alike = np.bincount(embedded.row[mine], minlength=len(embedded.first))
            shares[mine] = weight / alike[embedded.row[mine]]
        without = np.bincount(embedded.row, shares, len(embedded.first)) == 0
        return np.where(without[embedded.row], embedded.is_drawn, shares)


@dataclass(frozen=True)
class Embedded:
    """The captions of a shard whose states are stored, one row after another.

    first: number of the first of each row, and of the end. row: of each caption. number: of each in its row. is_drawn: whether all
    encoders have it.
    """

    first: I64
    row: I64
    number: I64
    is_drawn: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, table: Table, fields: Sequence[Field]) -> "Embedded | None":
        """None where the shard has one caption of each."""
        names = dict.fromkeys(tokens_column(field.name) for field in fields)
        firsts = [ragged(table, name)[0] for name in names if name in table.columns]
        if not firsts:
            return None
        first = max(firsts, key=lambda ends: int(ends[-1]))
        counts = np.min([np.diff(ends) for ends in firsts], axis=0)
        row = np.repeat(np.arange(len(first) - 1), np.diff(first))
        number = np.arange(len(row)) - first[row]
        return cls(first, row, number, number < counts[row])

    def kinds(self, table: Table) -> npt.NDArray[np.object_]:
        """The kind of each caption; empty where the sidecar does not say it."""
        first, kinds = ragged(table, "caption_kinds")
        known = self.number < np.diff(first)[self.row]
        found = np.full(len(self.row), "", object)
        found[known] = kinds[first[self.row[known]] + self.number[known]]
        return found


@dataclass(frozen=True)
class CaptionPlaces:
    """Says where the captions lie in the members of a text field, in rows of its array: tokens, or of a pooled one captions.

    first: number of the first caption of each row of the sidecar. ends: rows of the arrays up to each caption of the shard.
    """

    first: I64
    ends: I64

    @classmethod
    def of(cls, table: Table, field: Field) -> "CaptionPlaces | None":
        """None where a member is one caption's."""
        if (name := tokens_column(field.name)) not in table.columns:
            return None
        first, tokens = ragged(table, name)
        lengths = tokens if field.kind == "caption_latents" else np.ones_like(tokens)
        return cls(first, np.cumsum([0, *lengths]))

    def find(self, rows: I64, captions: I64) -> tuple[I64, I64, I64]:
        """Find for some rows of the sidecar, and a caption of each, where it begins and ends in the array, and where the array ends."""
        begin, at = self.ends[self.first[rows]], self.first[rows] + captions
        return self.ends[at] - begin, self.ends[at + 1] - begin, self.ends[self.first[rows + 1]] - begin
