"""A folder elsewhere: patience counts from the last 64 KiB, whichever server it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import loader.remote
from loader.cache import Cache
from loader.pace import LEAST
from loader.remote import Interrupted, RemoteFolder
from tests.support.waiting import Clock

PATIENCE = 60.0


class Slow:
    """A transport whose first answer takes ten minutes, `piece` every `pause` seconds, and then breaks off."""

    url = "slow://made-up"

    def __init__(self, clock: Clock, pause: float, piece: bytes = b"x" * LEAST) -> None:
        self.clock, self.pause, self.piece, self.connections = clock, pause, piece, 0

    def address(self, name: str) -> str:
        return name

    def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
        self.connections += 1
        if self.connections > 1:
            yield b"y" * 8
            return
        for _ in range(int(600 / self.pause)):
            yield self.piece
            self.clock.advance(self.pause)
        raise Interrupted("reset")


class Stutters(Slow):
    """One that breaks off a hundred times, after a piece and a pause each."""

    def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
        self.connections += 1
        yield self.piece
        if self.connections <= 100:
            self.clock.advance(self.pause)
            raise Interrupted("reset")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.remote, "LONGEST_WAIT", 0.01)


def test_a_file_may_take_long_if_only_something_arrives(tmp_path: Path, clock: Clock) -> None:
    folder = RemoteFolder(Slow(clock, 50.0), Cache(tmp_path, None), PATIENCE)
    assert folder.read("a") == b"x" * 12 * LEAST + b"y" * 8


def test_a_file_of_which_a_byte_comes_now_and_then_is_given_up(tmp_path: Path, clock: Clock) -> None:
    """The bytes come over one connection, and over many of a byte each."""
    transport = Slow(clock, 50.0, b"x")
    with pytest.raises(TimeoutError, match=r"^slow://made-up/a: reset; 12 bytes arrived in 600 s"):
        RemoteFolder(transport, Cache(tmp_path, None), PATIENCE).read("a")
    assert transport.connections == 1
    with pytest.raises(TimeoutError, match="reset; 3 bytes arrived in 75 s"):
        RemoteFolder(Stutters(clock, 25.0, b"x"), Cache(tmp_path, None), PATIENCE).read("a")


def test_a_server_from_which_nothing_arrives_is_given_up(tmp_path: Path, clock: Clock) -> None:
    transport = Slow(clock, 100.0)
    with pytest.raises(TimeoutError, match="reset; nothing arrived for 100 s"):
        RemoteFolder(transport, Cache(tmp_path, None), PATIENCE).read("a")
    assert transport.connections == 1


def test_outages_that_are_over_do_not_add_up(tmp_path: Path, clock: Clock) -> None:
    """A hundred in a row, each of them within the patience, and 64 KiB between any two."""
    folder = RemoteFolder(Stutters(clock, 50.0), Cache(tmp_path, None), PATIENCE)
    assert folder.read("a") == b"x" * 101 * LEAST


class DropsIdle(Slow):
    """One whose connection is gone after 20,000 bytes."""

    def stream(self, name: str, start: int, end: int = 0) -> Iterator[bytes]:
        self.connections += 1
        yield b"x" * min(20_000, end - start)
        if start + 20_000 < end:
            raise Interrupted("reset")


def test_the_time_that_the_reader_takes_is_not_the_servers(tmp_path: Path, clock: Clock) -> None:
    """A validation of ten minutes between two reads, over which the server drops the connection."""
    transport, got = DropsIdle(clock, 0.0), bytearray()
    folder = RemoteFolder(transport, Cache(tmp_path, None), PATIENCE)
    for chunk in folder.stream("a", got.__len__, 60_000):
        got.extend(chunk)
        clock.advance(600.0)
    assert got == b"x" * 60_000 and transport.connections == 3
