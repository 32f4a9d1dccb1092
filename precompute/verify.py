"""Prove that shards are whole: every source row written or rejected once, every byte what was written, every value sane.

    python precompute/verify.py latents/cc12m
    python precompute/verify.py hf://datasets/USER/cc12m-latents --quick
    python precompute/verify.py s3://BUCKET/cc12m --store-option region=us-east-1
    python precompute/verify.py latents/coco --source builders/coco --decode 64

Prints one line for each fault, with its cure. Exit code 0: whole; 1: there are faults; 2: a flag is wrong; 3: no fault was
found, but rights, a disk or a network kept something from being read.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from loader.format import Manifest, Marker
from loader.printable import printable
from precompute.cloud.place import check_options, is_store, open_shards, options_for, removal
from precompute.commands import parse, retyped
from precompute.errors import UsageError, one_line_errors
from precompute.flags.verify import Config as Config
from precompute.shards.store import Store, expected_manifest
from precompute.verification import check_folder as checks
from precompute.verification.beside_check import check_beside
from precompute.verification.check_folder import Finding
from precompute.verification.observation import Note, Observation
from precompute.verification.read_folder import ShardFolder, read_all, read_markers
from precompute.verification.verdict import keep_verdict

SHOWN = 50  # findings; --json has them all


@dataclass(frozen=True)
class Report:
    """What was checked. psnr: decibels by `KEY FIELD`; bytes: of tars and sidecars read."""

    output: str
    mode: str
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    shards: int = 0
    bytes: int = 0
    seconds: float = 0.0
    psnr: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, observation: Observation) -> None:
        if isinstance(observation, Finding):
            self.findings.append(observation)
        elif isinstance(observation, Note):
            self.notes.append(observation.text)
        else:
            self.psnr[observation.of] = observation.psnr

    @property
    def exit_code(self) -> int:
        """0: whole. 1: there are faults. 3: none was found, and something could not be read."""
        if all(finding.unread for finding in self.findings):
            return 3 if self.findings else 0
        return 1

    @property
    def verdict(self) -> str:
        """`whole`, or how many faults."""
        unread = sum(finding.unread for finding in self.findings)
        faults = len(self.findings) - unread
        told = [f"{faults:,} fault{'s' * (faults > 1)}"] if faults else []
        told += [f"{unread:,} file{'s' * (unread > 1)} could not be read"] if unread else []
        return " and ".join(told) or "whole"

    def summary(self) -> str:
        """The last line."""
        count = {
            name: sum(split[name] for split in self.splits.values())
            for name in ("samples", "rejected", "rows")
        }
        line = (
            f"{self.output}: {self.verdict}. {count['samples']:,} written + {count['rejected']:,} rejected = "
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


def verify(config: Config, on_finding: Callable[[Finding], object] = lambda finding: None) -> Report:
    """Look at everything. on_finding: is told of each fault as it is found. Raises UsageError for flags that cannot be."""
    started, store = time.monotonic(), opened(config, config.output)
    folder = read_markers(store)
    found = bool(folder.markers) or folder.manifest is not None
    expected = expected_manifest(folder.markers, folder.manifest) if found else None
    shards = [shard for marker in folder.markers.values() for shard in marker.shards]
    report = Report(
        config.output,
        mode_of(config),
        {
            name: {"samples": split.samples, "rejected": sum(split.rejected.values()), "rows": split.rows}
            for name, split in (expected.splits.items() if expected else ())
        },
        shards=len(shards),
        bytes=0 if config.quick else sum(shard.bytes for shard in shards),
    )
    for observation in observe(config, store, folder, expected) if expected else folder.findings:
        report.add(observation)
        if isinstance(observation, Finding):
            on_finding(observation)
    return replace(report, seconds=time.monotonic() - started)


def mode_of(config: Config) -> str:
    return "quick" if config.quick else "every byte"


def observe(config: Config, store: Store, folder: ShardFolder, expected: Manifest) -> Iterator[Observation]:
    """Everything of a folder that has markers or a manifest. expected: the manifest that it ought to have."""
    markers = folder.markers
    yield from folder.findings
    yield from checks.check_markers(markers, folder.manifest, expected, folder.unknown)
    yield from checks.check_layout(store, markers, folder.unknown)
    yield from checks.check_null_caption(store, expected)
    if config.beside:
        yield from check_beside(store, expected, markers, config.beside, functools.partial(opened, config))
    # First, so that a flag that is wrong shows in seconds.
    if config.source or config.decode:
        yield from check_meaning(store, expected, markers, config)
    yield from (
        checks.check_sizes(store.files, markers)
        if config.quick
        else read_all(store, markers, config.num_threads)
    )


def opened(config: Config, url: str) -> Store:
    """The shards there, of the layer or of its base. Raises UsageError."""
    return open_shards(url, options_for(url, config.output, config.store_option))


def check_meaning(
    store: Store, manifest: Manifest, markers: dict[str, Marker], config: Config
) -> Iterator[Observation]:
    """--source and --decode: the rows against their source, the latents against their images and captions."""
    # They bring datasets along, likeness torch: seconds to import.
    from precompute.input.recorded_source import Where
    from precompute.verification.source_check import check_source

    where = Where(config.source, config.data_dir, config.options)
    if config.decode:
        from precompute.verification.decode_check import check_likeness
        from precompute.verification.recipe_models import Models

        models = Models(config.vae, config.text_encoder, config.features)
        base = opened(config, config.beside) if config.beside else None
        yield from check_likeness(store, manifest, markers, config.decode, where, models, base)
    if config.source:
        yield from check_source(store, manifest, markers, where)


# --- the command ------------------------------------------------------------------------------------------------------


def check_flags(config: Config) -> None:
    """Raises UsageError for what cannot be, before anything is read."""
    if config.decode < 0 or config.num_threads < 1:
        flag = "--decode" if config.decode < 0 else "--num-threads"
        raise UsageError(f"{flag}: give a positive number")
    if not config.decode and (config.vae or config.text_encoder or config.features):
        flag = "--vae" if config.vae else "--text-encoder" if config.text_encoder else "--features"
        raise UsageError(f"{flag}: nothing is decoded; say how many: {retyped('--decode', '8')}")
    if not config.decode and config.source is None and (config.data_dir or config.options):
        flag = "--data-dir" if config.data_dir else "--options"
        raise UsageError(
            f"{flag}: the source is not read; give --source DATASET too, or say how many to decode: {retyped('--decode', '8')}"
        )
    if config.data_dir and not config.data_dir.is_dir():
        raise UsageError(f"--data-dir {config.data_dir}: no such folder")
    check_options(config.store_option, config.output, config.beside)


def run(config: Config) -> int:
    """Verify and print; the exit code."""
    check_flags(config)
    left = itertools.count(SHOWN, -1)
    report = verify(config, lambda finding: config.json or next(left) <= 0 or tqdm.write(str(finding)))
    if "://" not in config.output:
        keep_verdict(Path(config.output).expanduser(), report.verdict, report.mode)
    if is_store(config.output) and any("emove" in finding.cure for finding in report.findings):
        how = f"remove there: `{removal(config.output, config.store_option)}`, or by any other client of the store"
        report.add(Note(f"{how}; with a marker its unit's tars and parquets too, which are not written over"))
    if config.json:
        print(json.dumps({"whole": not report.findings, **dataclasses.asdict(report)}, indent=1))
        return report.exit_code
    if len(report.findings) > SHOWN:
        print(f"... and {len(report.findings) - SHOWN:,} more; --json lists them all")
    for note in report.notes:
        print(printable(f"note: {note}"))
    print(report.summary())
    return report.exit_code


def main(config: Config | None = None) -> None:
    config = config or parse("verify", Config, __doc__)
    with one_line_errors():
        sys.exit(run(config))


if __name__ == "__main__":
    main()
