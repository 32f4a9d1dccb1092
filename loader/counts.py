"""What the threads of a loader count, for `stats()`."""

import threading
from collections import Counter


class Counts:
    """Counts by name, of several threads."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, what: str, number: int = 1) -> None:
        with self._lock:
            self._counts[what] += number

    def take(self) -> Counter[str]:
        """What was counted since the last call."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return counts
