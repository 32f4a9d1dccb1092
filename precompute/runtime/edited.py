"""Source files that were edited after their unit was finished: told of, and with `--redo-changed` encoded again."""

import functools
from collections.abc import Mapping
from typing import Any

from precompute.errors import UsageError
from precompute.input.base_records import BaseRecords
from precompute.input.records import Records
from precompute.input.stamps import Stamp, listed, look_at, newer, stamp_of, told
from precompute.shards.manifest import ManifestKeeper


def look(records: Records | BaseRecords) -> dict[int, Stamp]:
    """Look what each unit's files are like now, where they are known."""
    # Units may have files in common, each of which is looked at once.
    stamps, paths, stamp, once = {}, None, None, functools.cache(look_at)
    for unit in records.units:
        # Units of one reading share one list of files, which is looked at once.
        if (here := records.files(unit)) is not paths:
            paths, stamp = here, stamp_of(here, once)
        if stamp:
            stamps[unit.index] = stamp
    return stamps


def redo_changed(
    records: Records | BaseRecords, keeper: ManifestKeeper, sources: Mapping[int, Stamp], redo: bool
) -> str:
    """What is to be said of source files that changed since their unit was finished. redo: these units begin anew."""
    units, names = _changed(records, keeper.sources_then(), sources)
    if redo:
        keeper.redo(units)
    return told(len(units), names, redo) if units else ""


def check_base(records: BaseRecords, keeper: ManifestKeeper, sources: Mapping[int, Stamp], redo: bool) -> str:
    """What is to be said of files that have another time than when the base was made, as a copy of them has too.

    Raises UsageError where they have another size, so that what is to be done would be of other pictures than the base.
    """
    again, _ = _changed(records, keeper.sources_then(), sources)
    to_do = sources.keys() - (keeper.finished - set(again if redo else ()))
    then = records.sources_then(to_do)
    units, names = _changed(records, then, sources)
    if any(then[unit].get("sizes") != sources[unit].sizes for unit in units):
        raise UsageError(
            f"--beside {records.base_url}: its source has changed since it was made: {listed(names)}. A layer of it would be "
            "of other pictures. Do the units of the base again, by its own command with --redo-changed, and then this layer, "
            "into an empty --output"
        )
    what = f"another time than when --beside {records.base_url} was made: {listed(names)}; of the same size, and taken to be the same"
    return what if units else ""


def _changed(
    records: Records | BaseRecords, then: Mapping[int, dict[str, Any]], sources: Mapping[int, Stamp]
) -> tuple[list[int], list[str]]:
    """Units whose files are not as they were, and names of the files."""
    names: list[str] = []
    units, paths = [], None
    for unit, stamp in then.items():
        if (now := sources.get(unit)) and stamp != now.as_json():
            units.append(unit)
            if (here := records.files(records.units[unit])) is not paths:
                paths, names = here, names + newer(here, stamp)
    return units, list(dict.fromkeys(names))
