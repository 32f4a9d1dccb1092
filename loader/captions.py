"""Which caption of a sample: the first, any, or one by the weights of their kinds; and where in its members it lies.

A sample's captions are those that its shards were made with, then those that were added later, kind by kind, in fields of their own.

A number in [0, 1) that belongs to the sample's position and epoch alone decides it, the same for all text encoders.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from loader.field_names import further_name
from loader.format import Field
from loader.order import I64
from loader.sidecar import Table, ragged
from loader.sidecar_schema import tokens_column

F64 = npt.NDArray[np.float64]
Captions = Literal["first", "random"] | Mapping[str, float]


class ChosenCaptions(NamedTuple):
    """A caption of each of some samples. of: 0 where it is one of the first ones, else 1 + the place of its kind among those that
    were added later; number: among those."""

    of: I64
    number: I64

    def only(self, some: npt.NDArray[np.bool_]) -> "ChosenCaptions":
        """Those of some of the samples."""
        return ChosenCaptions(self.of[some], self.number[some])


@dataclass(frozen=True)
class CaptionChoice:
    """Which caption is drawn of those that are embedded.

    "first": the first. "random": each as likely. Weights by kind: of the kinds that a sample has, each in proportion to its
    weight, and of several captions of that kind each as likely; where it has none of weight, any of its captions.
    further: kinds of captions that were added later, in the order in which they stand behind the first ones.
    """

    captions: Captions = "first"
    further: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Columns of the sidecar that it takes to choose."""
        return ["caption_kinds"] if isinstance(self.captions, Mapping) else []

    def choose(self, table: Table, fields: Sequence[Field], samples: I64, chance: F64) -> ChosenCaptions:
        """The caption of each sample, by a number in [0, 1) of each."""
        embedded = None
        if self.captions != "first":
            embedded = table.derived("embedded", lambda: Embedded.of(table, fields, self.further))
        if embedded is None or not len(embedded.row):
            first = np.zeros(len(samples), np.int64)
            return ChosenCaptions(first, first)
        ends = table.derived("caption ends", lambda: np.cumsum([0.0, *self._shares(table, embedded)]))
        rows = table.rows[samples]
        low, high = ends[embedded.first[rows]], ends[embedded.first[rows + 1]]
        aim = np.minimum(low + chance * (high - low), np.nextafter(high, low))
        at = np.minimum(np.searchsorted(ends[1:], aim, side="right"), len(embedded.row) - 1)
        return ChosenCaptions(embedded.of_kind[at], embedded.number[at])

    def _shares(self, table: Table, embedded: "Embedded") -> F64:
        """The share of each embedded caption of the shard, on a scale of its row's own."""
        if not isinstance(self.captions, Mapping):
            return np.ones(len(embedded.row))
        shares = np.zeros(len(embedded.row))
        kinds = embedded.kinds(table, self.further)
        for kind, weight in self.captions.items():
            mine = np.flatnonzero(kinds == kind)
            alike = np.bincount(embedded.row[mine], minlength=len(embedded.first))
            shares[mine] = weight / alike[embedded.row[mine]]
        without = np.bincount(embedded.row, shares, len(embedded.first)) == 0
        shares = np.where(without[embedded.row], 1.0, shares)
        # Else a light kind would be lost behind the heavier ones of the rows before.
        return shares / np.bincount(embedded.row, shares)[embedded.row]


@dataclass(frozen=True)
class Embedded:
    """The captions of a shard that every text encoder has embedded, one row after another.

    first: number of the first of each row, and of the end. row, of_kind, number: of each its row, and which of it, as ChosenCaptions
    has it.
    """

    first: I64
    row: I64
    of_kind: I64
    number: I64

    @classmethod
    def of(cls, table: Table, fields: Sequence[Field], further: Sequence[str]) -> "Embedded | None":
        """None where the shard has one caption of each."""
        counts = [_counts(table, [further_name(f.name, kind) for f in fields]) for kind in ("", *further)]
        if all(count is None for count in counts):
            return None
        each = np.stack([np.ones(len(table.keys), np.int64) if c is None else c for c in counts], axis=1)
        cell = np.repeat(np.arange(each.size), each.ravel())
        row, of_kind = np.divmod(cell, len(counts))
        ends = np.cumsum(each.ravel())
        first = np.concatenate([[0], ends[len(counts) - 1 :: len(counts)]])
        return cls(first, row, of_kind, np.arange(len(cell)) - (ends - each.ravel())[cell])

    def kinds(self, table: Table, further: Sequence[str]) -> npt.NDArray[np.object_]:
        """The kind of each caption; empty where the sidecar does not say it."""
        first, kinds = ragged(table, "caption_kinds")
        found = np.array(["", *further], object)[self.of_kind]
        known = (self.of_kind == 0) & (self.number < np.diff(first)[self.row])
        found[known] = kinds[first[self.row[known]] + self.number[known]]
        return found


def _counts(table: Table, names: Sequence[str]) -> I64 | None:
    """How many captions each row has in all of some text fields; None where each of them holds one."""
    columns = dict.fromkeys(map(tokens_column, names))
    counts = [np.diff(ragged(table, column)[0]) for column in columns if column in table.columns]
    fewest: I64 | None = np.min(counts, axis=0) if counts else None
    return fewest


@dataclass(frozen=True)
class CaptionPlaces:
    """Says where the captions lie in the members of a text field, in rows of its array: tokens, or of a pooled one captions.

    first: number of the first caption of each row of the sidecar. ends: rows of the arrays up to each caption of the shard.
    """

    first: I64
    ends: I64

    @classmethod
    def of(cls, table: Table, member: str) -> "CaptionPlaces | None":
        """None where a member is one caption's."""
        if (name := tokens_column(member)) not in table.columns:
            return None
        first, tokens = ragged(table, name)
        lengths = tokens if member.startswith("caption_latents") else np.ones_like(tokens)
        return cls(first, np.cumsum([0, *lengths]))

    def find(self, rows: I64, captions: I64) -> tuple[I64, I64, I64]:
        """Find for some rows of the sidecar, and a caption of each, where it begins and ends in the array, and where the array ends."""
        begin, at = self.ends[self.first[rows]], np.minimum(self.first[rows] + captions, len(self.ends) - 2)
        return self.ends[at] - begin, self.ends[at + 1] - begin, self.ends[self.first[rows + 1]] - begin
