"""Reading a folder of shards to the last byte: its markers and manifest, and every shard, several at once."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from huggingface_hub.errors import HTTPError
from tqdm import tqdm

from builders.archives import backoff
from loader.format import MANIFEST, FormatError, Manifest, Marker, Shard, text_field_name
from loader.recipe import BASE, Recipe, recipe_differences
from precompute.shards.store import Store
from precompute.verification import check_folder as checks
from precompute.verification import check_shard as contents
from precompute.verification.check_folder import READING, Finding, not_read, redo, rerun

UNREADABLE = (FormatError, TypeError, AttributeError, KeyError)  # JSON that anyone may have written


@dataclass
class ShardFolder:
    """What a folder says of itself. markers: by stem; unknown: stems, or manifest.json, of what says nothing, each with its
    finding."""

    markers: dict[str, Marker] = field(default_factory=dict)
    manifest: Manifest | None = None
    unknown: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def add(self, name: str, finding: Finding) -> None:
        self.unknown.add(name)
        self.findings.append(finding)


def read_markers(store: Store) -> ShardFolder:
    """Markers and manifest; a finding for each that cannot be read."""
    manifest, unread = _read_manifest(store)
    folder = ShardFolder(manifest=manifest)
    for stem in store.marker_stems():
        try:
            marker = Marker.from_json(_read(store, f"{stem}.json"))
            checks.check_marker(marker)
            folder.markers[stem] = marker
        except _NotRead as error:
            folder.add(stem, error.finding)
        except UNREADABLE as error:
            folder.add(stem, Finding(stem, "", f"the marker is unreadable ({error})", redo(stem)))
    if unread:
        folder.add(MANIFEST, unread)
    return folder


def _read_manifest(store: Store) -> tuple[Manifest | None, Finding | None]:
    """The manifest; none, and a finding, where it cannot be read."""
    if MANIFEST not in store.files:
        return None, None
    try:
        text = _read(store, MANIFEST)
        found = Manifest.from_json(text)
        # What a reader of the JSON sees and ours does not, such as the totals.
        if wrong := recipe_differences(json.loads(text), json.loads(found.to_json())):
            raise FormatError(f"it does not say what it should: {wrong[0]}")
        for split in found.splits.values():
            checks.check_counts(split.plan, split.shards, split.rejected)
    except _NotRead as error:
        return None, error.finding
    except UNREADABLE as error:
        cure = f"remove it and {rerun()}: it is made again from the markers"
        return None, Finding(MANIFEST, "", f"unreadable ({error})", cure)
    return found, None


class _NotRead(Exception):
    """Rights, a disk or a network that keep a file from being read."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


def _read(store: Store, name: str) -> bytes:
    try:
        return store.read(name)
    except READING as error:
        raise _NotRead(not_read(name, error)) from error


def _open(store: Store, name: str) -> BinaryIO:
    try:
        return store.open(name)
    except READING as error:
        raise _NotRead(not_read(name, error)) from error


# --- reading everything -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One shard to read, of the unit whose marker is `stem`.json."""

    stem: str
    marker: Marker
    shard: Shard


@dataclass(frozen=True)
class Outcome:
    """What reading a shard gave. hashes: of the keys of its samples, int64."""

    findings: list[Finding]
    statuses: Counter[str] = field(default_factory=Counter)
    hashes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    trusted: bool = False


def read_all(store: Store, markers: dict[str, Marker], num_threads: int) -> Iterator[Finding]:
    """Read every shard, several at once; then what only shows across shards."""
    jobs = [Job(stem, marker, shard) for stem, marker in markers.items() for shard in marker.shards]
    outcomes, total = [], sum(job.shard.bytes for job in jobs)
    with (
        tqdm(total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar,
        backoff.pool(num_threads, "verify") as pool,
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
    """Read one shard to the last byte. What could not be read is a finding of its own; a missing file has been found already."""
    name, cure, fields = job.shard.name, redo(job.stem), job.marker.fields
    findings, sidecar, layer = list[Finding](), None, BASE in job.marker.recipe
    if f"{name}.parquet" in store.files:
        try:
            data = _read(store, f"{name}.parquet")
            sidecar, findings = contents.check_sidecar(job.shard, fields, data, cure, layer)
        except _NotRead as error:
            findings.append(error.finding)
    if job.shard.samples and f"{name}.tar" in store.files:
        try:
            with _open(store, f"{name}.tar") as tar:
                findings += contents.check_tar(
                    job.shard, fields, sidecar, tar, cure, quoted_fields(job.marker.recipe), layer
                )
        except _NotRead as error:
            findings.append(error.finding)
        except (OSError, HTTPError) as error:
            findings.append(not_read(f"{name}.tar", error))
    if sidecar is None:
        return Outcome(findings)
    hashes = np.fromiter(map(hash, sidecar.rows), np.int64, len(sidecar.rows))
    return Outcome(findings, sidecar.statuses, hashes, trusted=True)


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
            try:
                data = _read(store, f"{job.shard.name}.parquet")
            except _NotRead as error:
                yield error.finding
                continue
            sidecar, _ = contents.check_sidecar(
                job.shard, job.marker.fields, data, "", BASE in job.marker.recipe
            )
            for key in sidecar.rows if sidecar else ():
                where = first.setdefault(key, job.shard.name)
                if where != job.shard.name:
                    what = f"the key is in {where} already"
                    yield Finding(
                        job.shard.name, key, what, f"give the source unique keys, then {redo(job.stem)}"
                    )


def quoted_fields(recipe: Recipe) -> list[str]:
    """Fields of text encoders that read only what is quoted: a caption without quotes has no row there."""
    specs = [spec for spec in recipe.get("text_encoders", []) if spec.get("quoted")]
    return [text_field_name("latents", spec.get("name") or "") for spec in specs]
