"""Which units of a split are finished, as the names in an object store tell: listed seldom, and no more of it than is new."""

import re
import threading
import time

from precompute.cloud.client import Client
from precompute.shards.destination import stem_of

LOOK = 1.0  # seconds for which a look holds, and twenty times as long as it took
FIVE_DIGITS = 100_000  # units whose names sort as their numbers do
PASSED = 400  # units known to be finished that are not listed again: more than a page of three files each


class FinishedUnits:
    """Indices of the units whose marker is there, as far as this process knows."""

    def __init__(self, client: Client, split: str) -> None:
        self._client, self._split = client, split
        self._known: set[int] = set()
        self._looked, self._look = 0.0, threading.Lock()
        self._marker = re.compile(re.escape(split) + r"-(\d{5,})\.json")

    def add(self, unit: int) -> None:
        self._known.add(unit)

    def discard(self, unit: int) -> None:
        self._known.discard(unit)

    def all(self) -> set[int]:
        """Those of a moment ago: listed from the first unit on that is not known to be finished, without what more than a
        page would tell of units that are."""
        with self._look:
            if time.monotonic() >= self._looked:
                began = time.monotonic()
                unit: int | None = self._next_unknown(0)
                while unit is not None:
                    unit = self._list_from(unit)
                now = time.monotonic()
                self._looked = now + max(LOOK, 20 * (now - began))
            return set(self._known)

    def _list_from(self, unit: int) -> int | None:
        """List from a unit on; the one to go on with is returned where many before it are known to be finished."""
        after = stem_of(self._split, unit) if unit < FIVE_DIGITS else None
        following = unit
        for found in self._client.list(after=after):
            if found.key > f"{self._split}-:":
                break
            if match := self._marker.fullmatch(found.key):
                self._known.add(finished := int(match[1]))
                if finished >= following and after is not None and self._client.lists_after:
                    following = self._next_unknown(finished + 1)
                    if finished + PASSED < following < FIVE_DIGITS:
                        return following
        return None

    def _next_unknown(self, unit: int) -> int:
        """The first unit from this one on that is not known to be finished."""
        while unit in self._known:
            unit += 1
        return unit
