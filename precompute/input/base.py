"""What `--beside` names: shards that lie there already, here or on the Hub, and what they say of their rows."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builders.archives import backoff
from builders.archives.read_errors import describe
from builders.core.record import Record
from loader.bucket import Bucket
from loader.format import MANIFEST, FormatError, Manifest, Marker, Shard
from loader.joined import rows_hash
from loader.recipe import BASE, Plan
from loader.state import unit_of
from precompute.commands import retyped
from precompute.errors import NotListed, OutputError, SourceError, UsageError
from precompute.input.faults import may_pass
from precompute.shards.destination import stem_of
from precompute.shards.store import Store

MARKERS_AT_ONCE = 16  # are read of a base far away


class Base:
    """One split of finished shards, to make a layer beside.

    manifest: theirs; plan: of the split, and which rows it has, by which the layer knows them again. opening: opens shards by
    their URL. Raises UsageError where there are none, they are not all there, or are a layer themselves.
    """

    def __init__(self, url: str, split: str, opening: Callable[[str], Store] = Store) -> None:
        self.url, self.split = url, split
        try:
            self._store = opening(url)
            self.manifest = Manifest.from_json(self._store.read(MANIFEST))
        except FormatError as error:
            raise UsageError(f"--beside {url}: its {MANIFEST} cannot be read ({_said(error)})") from error
        except OSError as error:
            raise NotListed(f"--beside {url}: its {MANIFEST} cannot be read ({_said(error)})") from error
        except UsageError as error:
            raise type(error)(f"--beside {error}") from error
        self.recipe = self.manifest.recipe
        if BASE in self.recipe:
            raise UsageError(f"--beside {url}: it is a layer itself; name what it was made beside")
        if split not in self.manifest.splits:
            raise UsageError(f"--split {split}: --beside {url} has {', '.join(self.manifest.splits)}")
        found = self.manifest.splits[split]
        if not found.complete:
            raise UsageError(
                f"--beside {url}: {found.units_done} of {found.plan['units']} units of split {split} are finished; "
                "finish them first, for a layer is made beside all of them"
            )
        self.plan: Plan = {**found.plan, "base": {"rows": rows_hash(found.shards)}}
        self._shards: dict[int, list[Shard]] = {}
        for shard in found.shards:
            self._shards.setdefault(unit_of(shard.name), []).append(shard)

    @property
    def num_rows(self) -> int:
        """Rows of the split, rejected ones too."""
        return sum(shard.rows for shards in self._shards.values() for shard in shards)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Width and height of the pictures in each shard, at the largest resolution; empty without buckets."""
        shards = (shard for unit in self._shards.values() for shard in unit)
        return {shard.name: Bucket.named(shard.bucket).sizes[-1] for shard in shards if shard.bucket}

    @property
    def caption_kinds(self) -> set[str]:
        """The kinds of captions that its samples have."""
        return set(self.manifest.splits[self.split].caption_kinds)

    @property
    def fields(self) -> set[str]:
        """Names of the fields that its samples have."""
        return {field.name for field in self.manifest.fields}

    def sources_then(self, units: Collection[int]) -> dict[int, dict[str, Any]]:
        """What the source files of these units looked like when the base was made, as far as it says. Raises SourceError."""
        with backoff.pool(MARKERS_AT_ONCE, "marker") as pool:
            found = dict(zip(units, pool.map(self._sources_of, units), strict=True))
        return {unit: sources for unit, sources in found.items() if isinstance(sources, dict)}

    def _sources_of(self, unit: int) -> Any:
        name = f"{stem_of(self.split, unit)}.json"
        if name not in self._store.files:
            return None
        try:
            return Marker.from_json(self._read(name)).timings.get("sources")
        except FormatError as error:
            raise SourceError(f"--beside {self.url}: {name} is damaged ({error})") from error

    def shards(self, unit: int) -> list[str]:
        """Names of the shards of a unit, in the order of the manifest."""
        return [shard.name for shard in self._shards.get(unit, ())]

    def rows(self, unit: int, with_extras: bool = False) -> Iterator[Record]:
        """The rows of a unit, shard by shard. Raises SourceError where a sidecar is gone or is another one."""
        for shard in self._shards.get(unit, ()):
            for values in pq.read_table(pa.BufferReader(self._sidecar(shard))).to_pylist():
                extras = json.loads(values["extras"] or "{}") if with_extras else {}
                reject = None if values["status"] == "ok" else values["status"]
                yield replace(Record.of_columns(values, None, extras), reject=reject, shard=shard.name)

    def _sidecar(self, shard: Shard) -> bytes:
        name = f"{shard.name}.parquet"
        data = self._read(name)
        if hashlib.sha256(data).hexdigest() != shard.parquet_sha256:
            raise SourceError(
                f"--beside {self.url}: {name} is not the one that its {MANIFEST} lists: the base has changed meanwhile. "
                f"Make the layer again, with another output: {retyped(output='{}-2')}"
            )
        return data

    def _read(self, name: str) -> bytes:
        """A file of the base; an outage is waited out. Raises SourceError."""
        patience = backoff.Patience()
        while True:
            try:
                return self._store.read(name)
            except OSError as error:
                what = f"--beside {self.url}: {name} cannot be read ({_said(error)})"
                if not may_pass(error) or not patience.wait(what):
                    raise SourceError(f"{what}. Mend that and run again") from error


def _said(error: Exception) -> str:
    """What went wrong, in one line: a store's own error is told already, and its cause is not."""
    return str(error) if isinstance(error, OutputError) else describe(error)
