"""The loader as a machine: iterate, break, save, load elsewhere, close, in any order, and the stream is the one it always is."""

from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from loader import make_loader

OPTIONS: dict[str, Any] = {
    "resolution": 256, "text_encoders": [""], "extras": ["key"], "seed": 5, "shuffle_window": 30,
}  # fmt: skip
BATCH, EPOCHS = 10, 8


def test_any_use_of_a_loader_gives_the_same_stream(shards: Path) -> None:
    whole = make_loader(shards, BATCH, **OPTIONS)
    stream = [batch["key"] for _ in range(EPOCHS) for batch in whole]
    whole.close()
    length = len(whole)

    class Use(RuleBasedStateMachine):
        """at: how many batches the trainer has had, of the stream without end."""

        def __init__(self) -> None:
            super().__init__()
            self.loader = make_loader(shards, BATCH, **OPTIONS)
            self.at = 0
            self.saved: list[tuple[int, Any]] = []

        @rule(most=st.integers(1, 6))
        def iterate(self, most: int) -> None:
            """Some batches, and then a break; or the rest of the epoch, where that is less."""
            if self.at + most > len(stream) - length:
                return
            for number, batch in enumerate(self.loader, start=1):
                assert batch["key"] == stream[self.at]
                self.at += 1
                if number == most:
                    break

        @rule()
        def save(self) -> None:
            self.saved.append((self.at, self.loader.state_dict()))

        @rule(which=st.integers(0, 20), elsewhere=st.booleans(), threads=st.integers(1, 3))
        def load(self, which: int, elsewhere: bool, threads: int) -> None:
            if self.saved:
                if elsewhere:
                    self.loader.close()
                    self.loader = make_loader(shards, BATCH, num_threads=threads, **OPTIONS)
                self.at, state = self.saved[which % len(self.saved)]
                self.loader.load_state_dict(state)

        @rule()
        def close(self) -> None:
            self.loader.close()

        def teardown(self) -> None:
            self.loader.close()

    run_state_machine_as_test(Use, settings=settings(max_examples=20, stateful_step_count=12))
