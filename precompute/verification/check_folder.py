"""What can be wrong with shards: pure functions from bytes to findings. precompute/verify.py runs them.

They trust nothing that they read: no length, no name, no count, and no tar that only looks whole.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from huggingface_hub.errors import HTTPError

from loader.format import (
    MANIFEST,
    NULL_CAPTION,
    SHARD_NAME,
    FormatError,
    Manifest,
    Marker,
    Shard,
    recipe_differences,
)
from loader.npy import stored_dtype
from loader.null_caption import is_text, null_caption_fault
from loader.printable import printable
from loader.recipe import Plan
from precompute.commands import command, launched
from precompute.shards.store import File, Store

# What file systems of others raise.
READING = (OSError, HTTPError, ValueError, TypeError, RuntimeError, AttributeError)
OTHER_SIDECAR = "the .parquet is not the one that the marker was written with (its sha256 differs)"


@dataclass(frozen=True)
class Finding:
    """One fault, one line. shard: its name, or the file at fault; key: empty where it is not about one sample.

    unread: nobody knows whether it is a fault, since rights, disk or network kept the file from being read.
    """

    shard: str
    key: str
    what: str
    cure: str
    unread: bool = False

    def __str__(self) -> str:
        place = " ".join(filter(None, (self.shard, self.key)))
        return (
            f"{printable(place)}: {printable(self.what)}. {self.cure[:1].upper()}{printable(self.cure[1:])}"
        )


def not_read(name: str, error: Exception) -> Finding:
    """A file that could not be read: no fault of the shards, as far as anybody knows."""
    said = str(error).splitlines()[0] if str(error).strip() else type(error).__name__
    return Finding(
        name, "", f"could not be read ({said})", "see to rights, disk and network, and verify again", True
    )


def redo(stem: str) -> str:
    """The cure for whatever is wrong inside a unit: without its marker it counts as not done."""
    return f"remove {stem}.json and {rerun()}"


def rerun() -> str:
    """Finish what is not done, by the command as it is typed here."""
    return f"run `{launched()}` again"


# --- the folder -------------------------------------------------------------------------------------------------------

README, SHEET, REPORT = "README.md", "preview.png", "report.html"
COMPANIONS = {MANIFEST, NULL_CAPTION, README, SHEET, REPORT}


def check_marker(marker: Marker) -> None:
    """Raises FormatError or TypeError where a value is of a type that a marker cannot have."""
    if not isinstance(marker.split, str):
        raise FormatError(f"its split is {marker.split!r}")
    for spec in marker.fields:
        np.dtype(stored_dtype(spec.dtype))
    check_counts(marker.plan, marker.shards, {"unit": marker.unit, **marker.rejected})


def check_counts(plan: Plan, shards: Sequence[Shard], rejected: dict[str, int]) -> None:
    """Raises FormatError where a number is none, or below 0, or of no data set: more than 8 bytes hold."""
    counts = {"number of units": plan["units"], **rejected}
    for shard in shards:
        counts |= {f"{name} of {shard.name}": getattr(shard, name) for name in ("samples", "rows", "bytes")}
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise FormatError(f"its {name} is {str(value)[:40]!r}")


def check_layout(store: Store, markers: dict[str, Marker], unknown: set[str]) -> Iterator[Finding]:
    """The files of a folder, by name, against its markers, by stem: what is missing, unfinished or foreign.

    unknown: units whose markers say nothing, and have been told of.
    """
    files = store.files
    known = COMPANIONS | {f"{stem}.json" for stem in (*markers, *unknown)}
    for stem, marker in markers.items():
        for shard in marker.shards:
            wanted = [f"{shard.name}.parquet", *([f"{shard.name}.tar"] if shard.samples else [])]
            known.update(wanted)
            for name in wanted:
                if name not in files:
                    what = f"the marker lists {name}, which is not there"
                    cure = f"bring it back, or {redo(stem)}"
                    if name.endswith(".tar"):
                        cure += f"; after --delete-pushed `{command('verify', 'hf://datasets/USER/REPO')}` instead"
                    yield Finding(shard.name, "", what, cure)
    for name in sorted(files.keys() - known):
        stem, _, suffix = name.rpartition(".")
        if stem in unknown or stem.rpartition("-")[0] in unknown:
            continue
        if suffix in ("tar", "parquet") and SHARD_NAME.fullmatch(stem):
            done = stem in markers or stem.rpartition("-")[0] in markers
            cure = "remove it" if done else f"remove it, or {rerun()} to finish the unit"
            yield Finding(stem, "", f"no marker lists {name}", cure)
        elif not name.startswith("."):
            yield Finding(name, "", "a foreign file", "move it elsewhere")
    for path in store.copies:
        name = path.rpartition("/")[2]
        yield Finding(
            path,
            "",
            f"there is another {name}, and readers take one of the two",
            "remove the one that is wrong",
        )
    for folder in store.strays:
        yield Finding(f"{folder}/", "", "a foreign folder", "move it elsewhere")


def check_sizes(files: dict[str, File], markers: dict[str, Marker]) -> Iterator[Finding]:
    """Sizes, and hashes where the store knows them, against the markers: all that can be said without reading."""
    for stem, marker in markers.items():
        for shard in marker.shards:
            tar, sidecar = files.get(f"{shard.name}.tar"), files.get(f"{shard.name}.parquet")
            if tar and tar.size != shard.bytes:
                what = f"the .tar has {tar.size:,} bytes, its marker says {shard.bytes:,}"
                yield Finding(shard.name, "", what, redo(stem))
            elif tar and tar.sha256 not in (None, shard.sha256):
                yield Finding(
                    shard.name,
                    "",
                    "the .tar is not the one that was written (its sha256 differs)",
                    redo(stem),
                )
            if sidecar and sidecar.sha256 not in (None, shard.parquet_sha256):
                yield Finding(shard.name, "", OTHER_SIDECAR, redo(stem))


def check_markers(
    markers: dict[str, Marker], manifest: Manifest | None, expected: Manifest, unknown: set[str]
) -> Iterator[Finding]:
    """The markers against each other and the manifest against them; expected: what they amount to.

    unknown: units, or the manifest, that cannot be read, and have been told of.
    """
    splits = Counter(marker.split for marker in markers.values())
    splits += Counter(
        stem.rpartition("-")[0] for stem in unknown if stem.rpartition("-")[0] in expected.splits
    )
    for stem, marker in markers.items():
        wrong = recipe_differences(expected.recipe, marker.recipe)
        if wrong:
            cure = "keep shards of one recipe in a place: move these to another"
            yield Finding(stem, "", f"made by another recipe ({wrong[0]})", cure)
        elif marker.fields != expected.fields:
            yield Finding(stem, "", "its fields are not those of the other shards", redo(stem))
        wrong = recipe_differences(expected.splits[marker.split].plan, marker.plan)
        if wrong:
            yield Finding(stem, "", f"made by another plan ({wrong[0]})", redo(stem))
        if stem != f"{marker.split}-{marker.unit:05d}":
            yield Finding(
                stem, "", f"the marker is of {marker.split}-{marker.unit:05d}", f"remove {stem}.json"
            )
        elif not 0 <= marker.unit < expected.splits[marker.split].plan["units"]:
            yield Finding(stem, "", "the plan has no such unit", f"remove {stem}.json and its shards")
    # A split that the manifest names and of which no marker is there too: a run that was ended before its first unit.
    for split, planned in expected.splits.items():
        done, units = splits[split], planned.plan["units"]
        if done < units:
            yield Finding(
                split, "", f"{done} of {units} units are finished", f"{rerun()} to finish the others"
            )
    if unknown:
        return
    if manifest is None:
        yield Finding("manifest.json", "", "missing", f"{rerun()}: it is made again from the markers")
    elif manifest != expected:
        wrong = recipe_differences(json.loads(manifest.to_json()), json.loads(expected.to_json()))
        what = f"does not say what the markers say ({wrong[0] if wrong else 'recipe'})"
        yield Finding("manifest.json", "", what, f"{rerun()}: it is made again from the markers")


def check_null_caption(store: Store, manifest: Manifest) -> Iterator[Finding]:
    """The empty caption's embeddings against the fields, and the file against the manifest's hash."""
    cure = f"remove it and {rerun()}: it is made anew"
    if NULL_CAPTION not in store.files:
        if any(map(is_text, manifest.fields)):
            yield Finding(NULL_CAPTION, "", "missing", f"{rerun()}: it is made anew")
        return
    try:
        data = store.read(NULL_CAPTION)
    except READING as error:
        yield not_read(NULL_CAPTION, error)
        return
    if fault := null_caption_fault(data, manifest.fields):
        yield Finding(NULL_CAPTION, "", fault, cure)
    elif manifest.null_caption not in (None, hashlib.sha256(data).hexdigest()):
        what = "not the one that the manifest was written with (its sha256 differs)"
        yield Finding(NULL_CAPTION, "", what, cure)


def check_rejects(stem: str, marker: Marker, statuses: Counter[str]) -> Iterator[Finding]:
    """Rejects by reason, counted in the unit's sidecars, against its marker."""
    found = {reason: count for reason, count in sorted(statuses.items()) if reason != "ok"}
    if found != {reason: count for reason, count in marker.rejected.items() if count}:
        what = f"the .parquet counts {found or 'nothing'} rejected, its marker {marker.rejected or 'nothing'}"
        yield Finding(stem, "", what, redo(stem))
