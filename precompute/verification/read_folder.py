"""Reading a folder of shards to the last byte: its markers and manifest, and every shard, several at once."""

import itertools
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from loader.format import MANIFEST, FormatError, Manifest, Marker, Shard
from precompute.shards.store import Store
from precompute.verification import check_folder as checks
from precompute.verification import check_shard as contents
from precompute.verification.check_folder import Finding, redo, rerun

UNREADABLE = (OSError, FormatError, TypeError, AttributeError, KeyError)  # JSON that anyone may have written


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
        cure = f"remove it and {rerun()}: it is made again from the markers"
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


def read_all(store: Store, markers: dict[str, Marker], num_threads: int) -> Iterator[Finding]:
    """Read every shard, several at once; then what only shows across shards."""
    jobs = [Job(stem, marker, shard) for stem, marker in markers.items() for shard in marker.shards]
    outcomes = []
    with (
        ThreadPoolExecutor(num_threads) as pool,
        tqdm(
            total=sum(j.shard.bytes for j in jobs), unit="B", unit_scale=True, disable=None, leave=False
        ) as bar,
    ):
        for job, outcome in zip(jobs, pool.map(lambda job: read_shard(store, job), jobs), strict=True):
            yield from outcome.findings
            outcomes.append(outcome)
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
