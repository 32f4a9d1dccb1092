"""Source files that were edited after their unit was finished: told of, and with `--redo-changed` encoded again."""

from collections.abc import Mapping

from precompute.input.base_records import BaseRecords
from precompute.input.ours import OurRecords
from precompute.input.records import Records
from precompute.input.stamps import Stamp, newer, stamp_of, told
from precompute.input.units import Unit
from precompute.shards.manifest import ManifestKeeper


def source_files(records: Records | BaseRecords, unit: Unit) -> list[str]:
    """None are known of datasets that are not ours, nor of a layer, which is held against its base by hashes."""
    return records.files(unit) if isinstance(records, OurRecords) else []


def look(records: Records | BaseRecords) -> dict[int, Stamp]:
    """Look what each unit's files are like now, where they are known."""
    return {unit.index: stamp for unit in records.units if (stamp := stamp_of(source_files(records, unit)))}


def redo_changed(
    records: Records | BaseRecords, keeper: ManifestKeeper, sources: Mapping[int, Stamp], redo: bool
) -> str:
    """What is to be said of source files that changed since their unit was finished. redo: these units begin anew."""
    names: list[str] = []
    units = []
    for unit, then in keeper.sources_then().items():
        if (now := sources.get(unit)) and then != now.as_json():
            units.append(unit)
            names += newer(source_files(records, records.units[unit]), then)
    if not units:
        return ""
    if redo:
        keeper.redo(units)
    return told(len(units), list(dict.fromkeys(names)), redo)
