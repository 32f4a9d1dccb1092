"""Source files that were edited after their unit was finished: told of, and with `--redo-changed` encoded again."""

from collections.abc import Mapping

from precompute.input.base_records import BaseRecords
from precompute.input.records import Records
from precompute.input.stamps import Stamp, newer, stamp_of, told
from precompute.shards.manifest import ManifestKeeper


def look(records: Records | BaseRecords) -> dict[int, Stamp]:
    """Look what each unit's files are like now, where they are known."""
    stamps, paths, stamp = {}, None, None
    for unit in records.units:
        # Units of one reading share one list of files, which is looked at once.
        if (here := records.files(unit)) is not paths:
            paths, stamp = here, stamp_of(here)
        if stamp:
            stamps[unit.index] = stamp
    return stamps


def redo_changed(
    records: Records | BaseRecords, keeper: ManifestKeeper, sources: Mapping[int, Stamp], redo: bool
) -> str:
    """What is to be said of source files that changed since their unit was finished. redo: these units begin anew."""
    names: list[str] = []
    units, paths = [], None
    for unit, then in keeper.sources_then().items():
        if (now := sources.get(unit)) and then != now.as_json():
            units.append(unit)
            if (here := records.files(records.units[unit])) is not paths:
                paths, names = here, names + newer(here, then)
    if not units:
        return ""
    if redo:
        keeper.redo(units)
    return told(len(units), list(dict.fromkeys(names)), redo)
