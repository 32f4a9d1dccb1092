"""Where the embeddings of a unit's captions are, so that a repeated one is encoded once."""

from collections import OrderedDict
from collections.abc import Sequence

from precompute.encode.text_states import Launched

# Of each text encoder: some 9,000 captions of CLIP-L, 5,000 of T5-XXL; then the oldest are forgotten.
CACHED_BYTES = 1 << 30


class CaptionCache:
    """Captions by where they lie: a launched batch, and a row of it."""

    def __init__(self) -> None:
        self._recent: OrderedDict[str, tuple[Launched, int]] = OrderedDict()
        self._bytes = 0

    def unknown(self, captions: Sequence[str]) -> list[str]:
        return [caption for caption in dict.fromkeys(captions) if caption not in self._recent]

    def add(self, captions: Sequence[str], batches: Sequence[Launched]) -> None:
        rows = [(launched, row) for launched in batches for row in range(len(launched.lengths))]
        self._recent.update(zip(captions, rows, strict=True))
        self._bytes += sum(launched.nbytes for launched in batches)

    def find(self, captions: Sequence[str]) -> list[tuple[Launched, int]]:
        """Give for each caption its batch and its row there; the oldest are forgotten thereafter."""
        found = [self._recent[caption] for caption in captions]
        while self._bytes > CACHED_BYTES and self._recent:
            launched, row = self._recent.popitem(last=False)[1]
            if row == len(launched.lengths) - 1:  # the last of its batch: now the memory is free
                self._bytes -= launched.nbytes
        return found
