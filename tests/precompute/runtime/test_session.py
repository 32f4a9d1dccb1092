"""A session is opened once and works on whatever units it is dealt, by whichever engine."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from precompute.config import Config
from precompute.input.units import Unit
from precompute.runtime.leases import UnitLease
from precompute.runtime.session import Session
from precompute.shards.output_folder import OutputFolder, open_folder
from tests.support.launching import leftovers


@dataclass(frozen=True)
class Dealt:
    """A unit that an engine has given to this process alone."""

    unit: Unit
    owner: str = "1-engine"

    def check(self) -> None:
        """It is never taken away."""


@dataclass
class Deal:
    """An engine that deals the units it is told to, and never looks at the place of the shards."""

    units: list[Unit]
    released: list[int] = field(default_factory=list)

    def all(self, stop: threading.Event) -> Iterator[UnitLease | None]:
        yield from map(Dealt, self.units)

    def release(self, lease: UnitLease) -> None:
        self.released.append(lease.unit.index)


def test_a_session_works_on_the_units_it_is_dealt_and_gives_the_bytes_of_a_plain_run(
    tmp_path: Path, demo_shards: Path
) -> None:
    open_folder("--output", tmp_path)
    config = Config(
        "builders/demo", tmp_path, vae="toy", text_encoder=("toy",), dtype="float32", batch_size=4
    )
    destination = OutputFolder(config.output, config.split)
    session = Session.open(config, destination)
    units = session.records.units
    assert len(units) > 2
    for part in (units[1::2], units[::2]):
        deal = Deal(part)
        stats = session.work(deal)
        assert deal.released == [unit.index for unit in part] and stats.images > 0
    session.keeper.refresh()
    destination.close(sweep=True)
    assert not leftovers(tmp_path)
    for path in demo_shards.iterdir():
        if path.suffix in (".tar", ".parquet", ".npz") or path.name == "manifest.json":
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
