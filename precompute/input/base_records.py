"""The rows of a layer: those of its base, with their captions as they stand there, and their images out of the source again."""

from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from builders.core.captions import clean_captions
from builders.core.joined_captions import JoinedCaptions, url_of
from builders.core.record import Record
from loader.format import recipe_differences
from loader.recipe import BASE
from precompute.errors import SourceError, UsageError
from precompute.input.base import Base
from precompute.input.caption_files import CaptionFiles
from precompute.input.records import Records
from precompute.input.units import Unit

LOST = "bad_archive"


@dataclass
class CaptionedRecord(Record):
    """A row of a base, and the captions that are added to it. kind: theirs."""

    kind: str = ""
    added: Sequence[str] = ()


class BaseRecords:
    """The rows of a base in the same units, each for the shard that it has there.

    source: gives the images, held by key; None where none are needed. added: captions that are to be added, one file of them.
    Raises UsageError where it is not what the base was made of.
    """

    def __init__(self, base: Base, source: Records | None, added: CaptionFiles | None = None) -> None:
        self._base, self._source, self.added = base, source, added
        self.recipe, self.plan = base.recipe["dataset"], base.plan
        self.units = [Unit(index, index) for index in range(base.plan["units"])]
        if source is not None:
            _check_source(base, source)

    def rows(self, unit: Unit) -> Iterator[Record]:
        """The records of one unit; what is no sample of the base is rejected for the same reason.

        Raises SourceError where the source has other rows now.
        """
        if self.added:
            (file,) = self.added
            for row in self._base.rows(unit.index, with_extras=True):
                yield self._with_added(row, file)
            return
        if self._source is None:
            for row in self._base.rows(unit.index):
                yield row
            return
        waiting: dict[str, deque[Record]] = defaultdict(deque)
        for row in self._base.rows(unit.index):
            waiting[row.key].append(row)
        lost = False
        for record in self._source.rows(self._source.units[unit.index]):
            if same := waiting.get(record.key):
                yield _beside(same.popleft(), record)
            elif record.reject == LOST:
                # An archive that could be read further when the base was made.
                lost = True
            else:
                raise self._mismatch(unit, f"the source has a row {record.key} that the base has not")
        left = [row for rows in waiting.values() for row in rows]
        if left and not lost:
            raise self._mismatch(unit, f"the source has no row {left[0].key}, which the base has")
        for row in left:
            yield replace(row, reject=row.reject or LOST)

    @property
    def joined(self) -> Sequence[JoinedCaptions]:
        """The files of captions that are added."""
        return self.added.joined if self.added else ()

    def left_out(self, unit: Unit) -> Mapping[str, int]:
        """Nothing: what the source holds beside its rows, the base has counted."""
        return {}

    def files(self, unit: Unit) -> Sequence[str]:
        """Local files that the images of a unit come from; what comes out of the base is known by its hashes."""
        return self._source.files(self._source.units[unit.index]) if self._source else ()

    def shards(self, unit: Unit) -> Sequence[str]:
        """Names of the base's shards of a unit, in their order."""
        return self._base.shards(unit.index)

    @property
    def base_url(self) -> str:
        return self._base.url

    def sources_then(self, units: Collection[int]) -> dict[int, dict[str, Any]]:
        """What the files of these units looked like when the base read them, as far as it says."""
        return self._base.sources_then(units)

    @property
    def num_rows(self) -> int:
        return self._base.num_rows

    @property
    def covering(self) -> Sequence[int]:
        """The resolutions of the base."""
        return self._base.recipe.get("resolutions", ())

    def shape(self, shard: str | None) -> tuple[int, int] | None:
        """Width and height of the bucket that a shard of the base is of, at its largest resolution; None without buckets."""
        return self._base.shapes.get(shard or "")

    def _with_added(self, row: Record, file: JoinedCaptions) -> CaptionedRecord:
        """The row with the captions that are added to it, cleaned as its own are; they may be none."""
        found = file.find(row.key, row.source or "", row.extras)
        profile = self.recipe.get("caption_cleaning") or "light"
        captions = [*clean_captions(found[1] if found else (), profile)[0].values()]
        # What the rows are joined by is kept, for the account of who matched.
        url = url_of(row.extras) if file.joined_by == "url" else None
        known = {**vars(row), "extras": {"url": url} if url else {}}
        return CaptionedRecord(**known, kind=file.name, added=captions)

    def _mismatch(self, unit: Unit, what: str) -> SourceError:
        return SourceError(
            f"--beside {self._base.url}: in unit {unit.index} {what}; give the source, --data-dir and --options that it was "
            "made of"
        )


def _beside(row: Record, source: Record) -> Record:
    """A row of the base with its image out of the source."""
    row = replace(row, share=source.share)
    if row.reject is not None:
        return row
    if source.reject is not None:
        return replace(row, reject=source.reject)
    return replace(row, image=source.image, width=source.width, height=source.height)


def _check_source(base: Base, source: Records) -> None:
    """Raises UsageError where the source is not what the base was made of."""
    made_of = {name: value for name, value in base.plan.items() if name != BASE}
    wrong = recipe_differences(base.recipe["dataset"], source.recipe, "dataset")
    wrong += recipe_differences(made_of, source.plan, "plan")
    if wrong:
        raise UsageError(
            f"--beside {base.url}: it was made of another source ({wrong[0]}); give DATASET, --data-dir and --options as then"
        )
