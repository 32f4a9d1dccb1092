"""`--retry-rejected`: each unit is done again once, however many processes take part, join late or start anew."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from loader.format import Field
from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.shards import retry
from precompute.shards.destination import WORK
from precompute.shards.manifest import ManifestKeeper
from precompute.shards.output_folder import OutputFolder
from precompute.shards.unit_writer import SidecarRow, UnitWriter
from tests.support.forked import forking

UNITS = 3
PLAN, FIELDS = {"units": UNITS}, [Field("latents_8", "latents", "float16", (4, 1, 1))]
MINUTE = 60 * 10**9  # ns


def finish(folder: Path, unit: int, *reasons: str, before: int = 0) -> None:
    """Finish a unit as a process does. before: so many ns ago, by the clock of the folder."""
    writer = UnitWriter(OutputFolder(folder), unit, ["latents_8"], 10, f"1-{unit}")
    for reason in reasons:
        writer.reject(SidecarRow(reason), reason)
    writer.commit({"vae": "x"}, FIELDS, PLAN, {})
    writer.discard()
    path = folder / f"train-{unit:05d}.json"
    written = path.stat().st_mtime_ns - before
    os.utime(path, ns=(written, written))


def join(folder: Path) -> ManifestKeeper:
    keeper = ManifestKeeper(OutputFolder(folder), {"vae": "x"}, FIELDS, PLAN)
    keeper.start()
    return keeper


@pytest.fixture(autouse=True)
def young(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is a second old, however long the tests have been running."""
    began = time.monotonic() - 1
    monkeypatch.setattr(retry, "seconds_lived", lambda: time.monotonic() - began)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Finished an hour ago: unit 0 whole, unit 1 with a bad archive, unit 2 with that and a missing image."""
    for unit, reasons in enumerate([(), ("bad_archive",), ("bad_archive", "missing_image")]):
        finish(tmp_path, unit, *reasons, before=60 * MINUTE)
    return tmp_path


def unfinished(folder: Path) -> list[int]:
    return [unit for unit in range(UNITS) if not (folder / f"train-{unit:05d}.json").exists()]


def test_process_that_joins_or_starts_anew_repeats_nothing(folder: Path) -> None:
    assert join(folder).reopen(["bad_archive"]) == 2
    finish(folder, 1, "bad_archive")  # as bad as before
    late = join(folder)
    assert late.reopen(["bad_archive"]) == 0
    assert unfinished(folder) == [2]


def test_interrupted_retry_goes_on_where_it_was(folder: Path) -> None:
    """Killed before it had reopened all."""
    join(folder).reopen(["missing_image"])
    (folder / WORK / "retry-train.missing_image").rename(folder / WORK / "retry-train.bad_archive")
    finish(folder, 2, "bad_archive")
    assert join(folder).reopen(["bad_archive"]) == 1
    assert unfinished(folder) == [1]


def test_finished_retry_is_over_and_the_next_command_is_a_new_one(folder: Path) -> None:
    leases = Leases(OutputFolder(folder), [Unit(index, index) for index in range(UNITS)])
    first, second = join(folder), join(folder)
    first.reopen(["bad_archive"])
    second.reopen(["bad_archive"])
    first.refresh()
    assert list((folder / WORK).glob("retry-*")), "not before all are finished"
    for unit in (1, 2):
        finish(folder, unit, "bad_archive", before=30 * MINUTE)
    first.refresh()
    second.refresh()
    leases.close()
    assert not (folder / WORK).exists()
    assert join(folder).reopen(["bad_archive"]) == 2


def test_every_reason_has_a_retry_of_its_own(folder: Path) -> None:
    join(folder).reopen(["bad_archive"])
    for unit in (1, 2):
        finish(folder, unit, "missing_image", before=-MINUTE)
    (folder / WORK / "retry-train.missing_image").touch()
    os.utime(folder / WORK / "retry-train.missing_image", (2**33, 2**33))
    assert join(folder).reopen(["bad_archive", "missing_image"]) == 2


def test_units_of_others_of_the_launch_that_were_through_already_are_kept(folder: Path) -> None:
    """This process has been loading its models while they did the whole retry."""
    finish(folder, 1, "bad_archive")
    assert retry.seconds_lived() > 0.1
    assert join(folder).reopen(["bad_archive"]) == 1
    assert unfinished(folder) == [2]


@pytest.mark.parametrize("hours", [-2, 2])
def test_clock_of_the_folder_may_be_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """A file server's clock may be hours off this machine's."""
    shift, now = hours * 3600, time.time
    monkeypatch.setattr(time, "time", lambda: now() + shift)
    finish(folder, 0, "bad_archive", before=30 * MINUTE)
    assert join(folder).reopen(["bad_archive"]) == 3
    finish(folder, 0, "bad_archive")
    assert join(folder).reopen(["bad_archive"]) == 0


def tell(answers: Any) -> None:
    answers.put(retry.seconds_lived())


def test_a_process_is_no_older_than_it_is() -> None:
    """Else what another command finished right before this one began would count as done in this retry."""
    answers = forking().SimpleQueue()
    begun = time.monotonic()
    process = forking().Process(target=tell, args=(answers,))
    process.start()
    found = answers.get()
    process.join()
    assert 0 <= found <= time.monotonic() - begun
