"""A folder elsewhere: patience counts from the last byte, whichever server it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import loader.remote
from loader.cache import Cache
from loader.remote import Interrupted, RemoteFolder
from tests.support.waiting import Clock

PATIENCE = 60.0


class Slow:
    """A transport whose first answer takes ten minutes, a byte every `pause` seconds, and then breaks off."""

    url = "slow://made-up"

    def __init__(self, clock: Clock, pause: float) -> None:
        self.clock, self.pause, self.connections = clock, pause, 0

    def address(self, name: str) -> str:
        return name

    def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
        self.connections += 1
        if self.connections > 1:
            yield b"y" * 8
            return
        for _ in range(int(600 / self.pause)):
            yield b"x"
            self.clock.advance(self.pause)
        raise Interrupted("reset")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.01)


def test_a_file_may_take_long_if_only_something_arrives(tmp_path: Path, clock: Clock) -> None:
    folder = RemoteFolder(Slow(clock, 50.0), Cache(tmp_path, None), PATIENCE)
    assert folder.read("a") == b"x" * 12 + b"y" * 8


def test_a_server_from_which_nothing_arrives_is_given_up(tmp_path: Path, clock: Clock) -> None:
    transport = Slow(clock, 100.0)
    with pytest.raises(TimeoutError, match="reset; nothing arrived for 100 s"):
        RemoteFolder(transport, Cache(tmp_path, None), PATIENCE).read("a")
    assert transport.connections == 1


def test_outages_that_are_over_do_not_add_up(tmp_path: Path, clock: Clock) -> None:
    """A hundred in a row, each of them within the patience, and a byte between any two."""

    class Stutters(Slow):
        def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
            self.connections += 1
            yield b"x"
            if self.connections <= 100:
                self.clock.advance(50)
                raise Interrupted("reset")

    folder = RemoteFolder(Stutters(clock, 0.0), Cache(tmp_path, None), PATIENCE)
    assert folder.read("a") == b"x" * 101
