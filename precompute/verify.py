"""Prove that shards are whole: every source row written or rejected once, every byte what was written, every value sane.

    python precompute/verify.py latents/cc12m
    python precompute/verify.py hf://datasets/USER/cc12m-latents --quick
    python precompute/verify.py latents/cc12m --decode 64 --source builders/cc12m --data-dir raw/cc12m

Prints one line for each fault, with its cure, and ends with exit code 1 if there was any.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from tqdm import tqdm

from loader.format import MANIFEST, FormatError, Manifest, Marker, Shard
from precompute.errors import UsageError, one_line_errors
from precompute.shards.store import Store, expected_manifest
from precompute.verification import check_folder as checks
from precompute.verification import check_shard as contents
from precompute.verification.check_folder import RERUN, Finding, redo

SHOWN = 50  # findings; --json has them all
UNREADABLE = (OSError, FormatError, TypeError, AttributeError, KeyError)  # JSON that anyone may have written


@dataclass(frozen=True)
class Config:
    output: tyro.conf.Positional[str]
    """Folder with the shards, or hf://datasets/USER/REPO[@REVISION]."""

    quick: bool = False
    """Look at markers, names, sizes and counts only, and on the Hub at the hashes that it keeps."""

    decode: int = 0
    """Decode this many samples too, and hold them against their source images where those are at hand."""

    source: str | None = None
    """Read DATASET again, and check that every one of its rows is written or rejected, under its own caption."""

    data_dir: Path | None = None
    """Folder with the raw archives, as given to precompute/run.py."""

    options: tuple[str, ...] = ()
    """Options of the dataset's builder that have to differ from those that the shards were made with, `links=PATH` say."""

    vae: str | None = None
    """Image encoder to decode with, where it came from a folder. Default: the one that the recipe names."""

    text_encoder: tuple[str, ...] = ()
    """Text encoders to compare with, where they came from a folder. Default: those that the recipe names."""

    num_threads: int = min(32, 2 * (os.cpu_count() or 1))
    """Shards read at once; more than there are cores, since some wait for the disk."""

    json: bool = False
    """Print one JSON object: what was checked, and all findings."""


@dataclass
class Report:
    """What was checked. psnr: decibels by `KEY resolution`; bytes: of tars and sidecars read."""

    output: str
    mode: str
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    shards: int = 0
    bytes: int = 0
    seconds: float = 0.0
    psnr: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def summary(self) -> str:
        """The last line."""
        count = {
            name: sum(split[name] for split in self.splits.values())
            for name in ("samples", "rejected", "rows")
        }
        verdict = f"{len(self.findings):,} faults" if self.findings else "whole"
        line = (
            f"{self.output}: {verdict}. {count['samples']:,} written + {count['rejected']:,} rejected = "
            f"{count['rows']:,} rows in {self.shards:,} shards; {self.mode}, {self.seconds:.1f} s"
        )
        if self.bytes:
            line += (
                f", {self.bytes / 1e9:,.2f} GB read at {self.bytes / 1e9 / max(self.seconds, 1e-9):.2f} GB/s"
            )
        if self.psnr:
            values = sorted(self.psnr.values())
            line += f"; PSNR {values[0]:.1f} to {values[-1]:.1f} dB, median {values[len(values) // 2]:.1f}"
        return line


def verify(config: Config, report: Report) -> Iterator[Finding]:
    """Every fault, as it is found; fills in the report on the way. Raises UsageError for flags that cannot be."""
    store = Store(config.output)
    markers, manifest, faults = read_markers(store)
    yield from faults
    if not markers and manifest is None:
        return
    expected = expected_manifest(markers, manifest)
    yield from checks.check_markers(markers, manifest, expected)
    yield from checks.check_layout(store.files, markers)
    report.shards = sum(len(marker.shards) for marker in markers.values())
    for name, split in expected.splits.items():
        rejected = sum(split.rejected.values())
        report.splits[name] = {"samples": split.samples, "rejected": rejected, "rows": split.rows}
    if config.source or config.decode:  # first: a flag that is wrong shows in seconds
        yield from check_meaning(store, expected, markers, config, report)
    yield from (
        checks.check_sizes(store.files, markers) if config.quick else read_all(store, markers, config, report)
    )


def check_meaning(
    store: Store, manifest: Manifest, markers: dict[str, Marker], config: Config, report: Report
) -> Iterator[Finding]:
    """--source and --decode: the rows against their source, the latents against their images and captions."""
    from precompute.verification.source_check import (
        Where,
        check_source,
    )  # brings datasets along, likeness torch: seconds to import

    where = Where(config.source, config.data_dir, config.options)
    if config.decode:
        from precompute.verification.decode_check import Models, check_likeness

        models = Models(config.vae, config.text_encoder)
        likeness = check_likeness(store, manifest, markers, config.decode, where, models)
        report.psnr, report.notes = likeness.psnr, likeness.notes
        yield from likeness.findings
    if config.source:
        yield from check_source(store, manifest, markers, where)


def read_markers(store: Store) -> tuple[dict[str, Marker], Manifest | None, list[Finding]]:
    """Markers by stem, and the manifest; a finding for each that cannot be read."""
    markers, faults = dict[str, Marker](), list[Finding]()
    manifest: Manifest | None = None
    for stem in store.marker_stems():
        try:
            marker = Marker.from_json(store.read(f"{stem}.json"))
            checks.check_marker(marker)
            markers[stem] = marker
        except UNREADABLE as error:
            faults.append(Finding(stem, "", f"the marker is unreadable ({error})", redo(stem)))
    try:
        if MANIFEST in store.files:
            found = Manifest.from_json(store.read(MANIFEST))
            for split in found.splits.values():
                checks.check_counts(split.plan, split.shards, split.rejected)
            manifest = found
    except UNREADABLE as error:
        cure = f"remove it and {RERUN}: it is made again from the markers"
        faults.append(Finding(MANIFEST, "", f"unreadable ({error})", cure))
    return markers, manifest, faults


# --- reading everything -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One shard to read, of the unit whose marker is `stem`.json."""

    stem: str
    marker: Marker
    shard: Shard


@dataclass
class Outcome:
    """What reading a shard gave. hashes: of the keys of its samples, int64."""

    findings: list[Finding]
    statuses: Counter[str] = field(default_factory=Counter)
    hashes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    trusted: bool = False


def read_all(store: Store, markers: dict[str, Marker], config: Config, report: Report) -> Iterator[Finding]:
    """Read every shard, several at once; then what only shows across shards."""
    jobs = [Job(stem, marker, shard) for stem, marker in markers.items() for shard in marker.shards]
    outcomes = []
    with (
        ThreadPoolExecutor(config.num_threads) as pool,
        tqdm(
            total=sum(j.shard.bytes for j in jobs), unit="B", unit_scale=True, disable=None, leave=False
        ) as bar,
    ):
        for job, outcome in zip(jobs, pool.map(lambda job: read_shard(store, job), jobs), strict=True):
            yield from outcome.findings
            outcomes.append(outcome)
            report.bytes += job.shard.bytes
            bar.update(job.shard.bytes)
    for stem, pairs in itertools.groupby(zip(jobs, outcomes, strict=True), key=lambda pair: pair[0].stem):
        mine = [outcome for _, outcome in pairs]
        if all(outcome.trusted for outcome in mine):
            yield from checks.check_rejects(stem, markers[stem], sum((o.statuses for o in mine), Counter()))
    yield from repeated_keys(store, jobs, outcomes)


def read_shard(store: Store, job: Job) -> Outcome:
    """Read one shard to the last byte. An unreadable file is a finding; a missing one has been found already."""
    name, cure, fields = job.shard.name, redo(job.stem), job.marker.fields
    outcome, sidecar = Outcome([]), None
    try:
        if f"{name}.parquet" in store.files:
            data = store.read(f"{name}.parquet")
            sidecar, outcome.findings = contents.read_sidecar(job.shard, fields, data, cure)
        if job.shard.samples and f"{name}.tar" in store.files:
            with store.open(f"{name}.tar") as tar:
                outcome.findings += contents.check_tar(job.shard, fields, sidecar, tar, cure)
    except OSError as error:
        outcome.findings.append(Finding(name, "", f"cannot be read ({error})", f"check the disk, or {cure}"))
    if sidecar is not None:
        outcome.statuses, outcome.trusted = sidecar.statuses, True
        outcome.hashes = np.fromiter(map(hash, sidecar.rows), np.int64, len(sidecar.rows))
    return outcome


def repeated_keys(store: Store, jobs: list[Job], outcomes: list[Outcome]) -> Iterator[Finding]:
    """Keys that two shards of a split share: by their hashes first, 8 bytes each, then for certain."""
    for split in sorted({job.marker.split for job in jobs}):
        mine = [(j, o) for j, o in zip(jobs, outcomes, strict=True) if j.marker.split == split]
        values, counts = np.unique(np.concatenate([o.hashes for _, o in mine]), return_counts=True)
        suspects = values[counts > 1]
        first: dict[str, str] = {}
        for job, outcome in mine if len(suspects) else ():
            if not np.isin(outcome.hashes, suspects).any():
                continue
            data = store.read(f"{job.shard.name}.parquet")
            sidecar, _ = contents.read_sidecar(job.shard, job.marker.fields, data, "")
            for key in sidecar.rows if sidecar else ():
                where = first.setdefault(key, job.shard.name)
                if where != job.shard.name:
                    what = f"the key is in {where} already"
                    yield Finding(
                        job.shard.name, key, what, f"give the source unique keys, then {redo(job.stem)}"
                    )


# --- the command ------------------------------------------------------------------------------------------------------


def check_flags(config: Config) -> None:
    """Raises UsageError for what cannot be, before anything is read."""
    if config.decode < 0 or config.num_threads < 1:
        flag = "--decode" if config.decode < 0 else "--num-threads"
        raise UsageError(f"{flag}: give a positive number")
    if not config.decode and (config.vae or config.text_encoder):
        flag = "--vae" if config.vae else "--text-encoder"
        raise UsageError(f"{flag}: nothing is decoded; give --decode N too")
    if not config.decode and config.source is None and (config.data_dir or config.options):
        flag = "--data-dir" if config.data_dir else "--options"
        raise UsageError(f"{flag}: the source is not read; give --decode N or --source DATASET too")
    if config.data_dir and not config.data_dir.is_dir():
        raise UsageError(f"--data-dir {config.data_dir}: no such folder")


def run(config: Config) -> int:
    """Verify and print; the exit code."""
    check_flags(config)
    mode = "quick" if config.quick else "every byte"
    report, started = Report(config.output, mode), time.monotonic()
    for finding in verify(config, report):
        report.findings.append(finding)
        if not config.json and len(report.findings) <= SHOWN:
            tqdm.write(str(finding))
    report.seconds = time.monotonic() - started
    if config.json:
        print(json.dumps({"whole": not report.findings, **dataclasses.asdict(report)}, indent=1))
        return int(bool(report.findings))
    if len(report.findings) > SHOWN:
        print(f"... and {len(report.findings) - SHOWN:,} more; --json lists them all")
    for note in report.notes:
        print(f"note: {note}")
    print(report.summary())
    return int(bool(report.findings))


def main() -> None:
    with one_line_errors():
        sys.exit(run(tyro.cli(Config, description=__doc__)))


if __name__ == "__main__":
    main()
