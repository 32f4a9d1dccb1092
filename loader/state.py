"""The state of a loader: a few integers that say where it is, in which order of which shards; and how another set of shards differs.

A state keeps the shards' hash, and which units of work they are of as runs of numbers: two integers for a dataset that is
whole. From these a larger set of shards can tell whether it holds all the old ones, and which were added.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

State = dict[str, int]

UNIT = re.compile(r".+?-(\d{5,})(?:-\d{2,})?")  # train-00012-03 is the fourth shard of unit 12
BITS = 31
MOST_RUNS = 64  # beyond, a state says how many shards there were and not which
NAMED = 8


def hash_of(value: Any) -> int:
    """63 bits that fit a JSON number and a tensor."""
    return int.from_bytes(hashlib.sha256(repr(value).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class PathShards:
    """The shards of one path. names: in the order of the manifest; samples: of each."""

    url: str
    fingerprint: str
    names: Sequence[str]
    samples: Sequence[int]

    def only(self, units: set[int]) -> "PathShards":
        """The part that lies in some units."""
        keep = [(n, s) for n, s in zip(self.names, self.samples, strict=True) if unit_of(n) in units]
        return PathShards(self.url, self.fingerprint, [n for n, _ in keep], [s for _, s in keep])


@dataclass(frozen=True)
class ShardSet:
    """All shards of a loader, path by path."""

    parts: Sequence[PathShards]

    def state(self) -> State:
        """What a state keeps of them: `shards`, `num_shards`, and `units P.R`: run R of path P, first << 31 | last."""
        runs = {
            f"units {number}.{index}": first << BITS | last
            for number, part in enumerate(self.parts)
            for index, (first, last) in enumerate(runs_of(part.names))
        }
        named = runs if len(runs) <= MOST_RUNS else {}
        return {"shards": self._hash(), "num_shards": sum(len(part.names) for part in self.parts), **named}

    def difference(self, state: State) -> str:
        """What is other than when `state` was taken; empty where the shards are the same."""
        if state.get("shards") == self._hash():
            return ""
        here = sum(len(part.names) for part in self.parts)
        line = f"shards: {state.get('num_shards', 0)} there, {here} here"
        units = self._units(state)
        if units is None:
            return f"{line}; which, the state does not say"
        gone = [
            f"{part.url} has no unit {unit}"
            for part, old in zip(self.parts, units, strict=True)
            for unit in sorted(old - {unit_of(name) for name in part.names})
        ]
        if gone:
            return f"{line}; {_some(gone)}"
        if added := self.added(state):
            return (
                f"{line}; added since: {_some(added)}. load_state_dict(state, shards='added') goes on with all of "
                "them at the beginning of a new epoch"
            )
        return f"{line}; of the same names, and of another recipe or other numbers of samples"

    def added(self, state: State) -> list[str]:
        """Names of the shards that are here and were not there; none unless all that were there are here, unchanged."""
        units = self._units(state)
        if units is None:
            return []
        pairs = list(zip(self.parts, units, strict=True))
        if ShardSet([part.only(old) for part, old in pairs])._hash() != state.get("shards"):
            return []
        return [name for part, old in pairs for name in part.names if unit_of(name) not in old]

    def _hash(self) -> int:
        return hash_of([(part.fingerprint, *part.names, *part.samples) for part in self.parts])

    def _units(self, state: State) -> list[set[int]] | None:
        """The units of each path in a state; None where it does not name them, or where the paths are not as many."""
        units: list[set[int]] = [set() for _ in self.parts]
        for name, packed in state.items():
            if match := re.fullmatch(r"units (\d+)\.\d+", name):
                if int(match[1]) >= len(units) or not isinstance(packed, int):
                    return None
                first, last = packed >> BITS, packed & (1 << BITS) - 1
                here = {unit_of(n) for n in self.parts[int(match[1])].names}
                # It is no state of ours, or of a dataset that is not this one.
                if last - first > len(here) + (1 << 20):
                    return None
                units[int(match[1])].update(range(first, last + 1))
        return units if all(units) else None


def check_state(state: State, identity: State, here: ShardSet, shards: str) -> bool:
    """Whether shards were added since `state` was taken, which only shards="added" allows.

    identity: what decides the order of samples here, beside the shards. Raises ValueError where the state is of another order,
    or is none.
    """
    if shards not in ("same", "added"):
        raise ValueError(f"shards={shards!r}: expected 'same' or 'added'")
    different = [
        f"{name}: {state.get(name)!r} there, {value!r} here"
        for name, value in identity.items()
        if state.get(name) != value
    ]
    difference = here.difference(state)
    added = shards == "added" and bool(difference) and bool(here.added(state))
    if difference and not added:
        different.append(difference)
    if different:
        raise ValueError("load_state_dict: the state is of another order of samples; " + "; ".join(different))
    for name in ("epoch", "position", "stride"):
        if not isinstance(number := state.get(name), int) or number < (name == "stride"):
            raise ValueError(f"load_state_dict: {name}={number!r} is none; give what state_dict() returned")
    return added


def unit_of(name: str) -> int:
    """The number of the unit of work that a shard is of; -1 for a name that precompute did not give."""
    match = UNIT.fullmatch(name)
    return int(match[1]) if match else -1


def runs_of(names: Sequence[str]) -> list[tuple[int, int]]:
    """First and last of each stretch of units without a gap; none where some name tells no unit."""
    units = sorted({unit_of(name) for name in names})
    if not units or units[0] < 0 or units[-1] >= 1 << BITS:
        return []
    runs = [(units[0], units[0])]
    for unit in units[1:]:
        first, last = runs[-1]
        if unit == last + 1:
            runs[-1] = first, unit
        else:
            runs.append((unit, unit))
    return runs


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
