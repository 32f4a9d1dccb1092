"""Write shards and the layers beside them as one dataset: samples selected, shuffled over all shards, in shards of one size.

    python precompute/pack.py latents/cc12m latents/cc12m-t5 --output packed

No model is needed: members are copied byte for byte, damaged ones too, so verify what goes in first. Run the same command again
after any interruption, as often at once as you like: finished units are kept.
"""

import contextlib
import io
import logging
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from loader.cache import Cache, cache_folder
from loader.condition import Condition, select_samples
from loader.format import NULL_CAPTION, as_json, recipe_differences
from loader.joined import open_dataset, rows_hash
from loader.recipe import BASE, Plan, Recipe
from loader.remote import open_files
from loader.source import ManifestSource
from loader.tar_source import TarSource
from precompute.cloud.place import (
    check_options,
    check_place,
    check_scratch,
    is_url,
    open_output,
    store_options,
)
from precompute.commands import command, parse
from precompute.errors import UsageError, one_line_errors, output_errors
from precompute.flags.pack import Config as Config
from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.runtime.packer import Packer
from precompute.shards.destination import Destination
from precompute.shards.manifest import ManifestKeeper
from precompute.shards.packing import Packing, Shards

PATIENCE = 900.0  # seconds


def run(config: Config) -> str:
    """Pack, with whoever else is at it; what came of it. Raises PrecomputeError."""
    if config.samples_per_shard < 1 or not config.lease_timeout > 0:
        flag = "--samples-per-shard" if config.samples_per_shard < 1 else "--lease-timeout"
        raise UsageError(f"{flag}: give more than 0")
    check_place("--output", config.output)
    check_scratch(config.scratch, config.output)
    check_options(config.store_option, config.output, *config.inputs)
    started = time.monotonic()
    condition = Condition(config.where, config.keys, config.subset)
    try:
        cache = Cache(cache_folder(), None)
        sources = open_sources(config, cache)
        chosen = [chosen_rows(source, condition) for source in sources]
        if not any(len(samples) for parts in chosen for samples in parts):
            raise UsageError(f"--where {config.where}, --keys, --subset: no sample fulfils them; loosen one")
        packing = Packing(sources, chosen, config.shuffle, config.samples_per_shard)
        check_keys(packing)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    options = config.store_option if is_url(config.output) else ()
    output = open_output(config.output, config.split, config.scratch, options)
    recipe, plan = recipe_and_plan(config, condition, sources, len(packing))
    keeper = ManifestKeeper(output, recipe, list(sources[0].fields), plan)
    keeper.start()
    copy_null_caption(output, sources[0])
    leases = Leases(output, [Unit(index, index) for index in range(len(packing))], config.lease_timeout)
    with contextlib.closing(output), contextlib.closing(leases):
        with tqdm(total=len(leases.units), initial=len(leases.finished()), unit="unit", disable=None) as bar:

            def show() -> None:
                bar.update(len(leases.finished()) - bar.n)

            fields, most = sources[0].fields, config.samples_per_shard
            packer = Packer(output, packing, fields, (recipe, plan), most, keeper, show, cache.stop.set)
            packer.work(leases)
        split = keeper.refresh().splits[config.split]
    size = sum(shard.bytes for shard in split.shards)
    return (
        f"{config.output}: {split.samples:,} samples in {len(split.shards):,} shards, {size / 1e9:.2f} GB, "
        f"{time.monotonic() - started:.1f} s (`{command('verify', config.output)}` proves it whole)"
    )


def open_sources(config: Config, cache: Cache) -> list[Shards]:
    """The inputs, each with its layers, remote ones by the cache. Raises UsageError where they do not go together; and OSError."""
    folder = cache_folder()
    options = store_options(config.inputs, config.store_option)
    files = [open_files(path, cache, PATIENCE, options) for path in config.inputs]
    alone = [open_dataset(one, config.split, folder) for one in files]
    groups: list[list[int]] = []
    for number, source in enumerate(alone):
        if not isinstance(source, ManifestSource):
            raise UsageError(f"{source.files.url}: it has no manifest.json; name the --output of a run")
        if source.missing:
            raise UsageError(
                f"{source.files.url}: {source.missing} units are not finished; finish them first"
            )
        if BASE in source.recipe and not groups:
            raise UsageError(f"{source.files.url}: it is a layer; name what it lies beside before it")
        if BASE in source.recipe:
            groups[-1].append(number)
        else:
            groups.append([number])
    opened = (
        open_dataset(files[n], config.split, folder, [files[m] for m in layers]) for n, *layers in groups
    )
    sources = [source for source in opened if not isinstance(source, TarSource)]
    for source in sources[1:]:
        wrong = recipe_differences({**sources[0].recipe, "dataset": None}, {**source.recipe, "dataset": None})
        if wrong:
            raise UsageError(
                f"{source.files.url} and {sources[0].files.url}: made by different recipes ({wrong[0]}); pack them apart"
            )
    return sources


def chosen_rows(source: Shards, condition: Condition) -> Sequence[Any]:
    """List for each shard the numbers of its chosen samples."""
    if condition:
        return select_samples(source, condition, cache_folder(), [], [])
    return [np.arange(count) for count in source.samples([], [])]


def check_keys(packing: Packing) -> None:
    """Raises UsageError where a key stands twice, in two datasets or in one: it is one sample's."""
    if (shared := packing.shared_key()) is not None:
        key, *both = shared
        one, other = (source.files.url for source in both)
        if one == other:
            raise UsageError(
                f"{one}: the key {key} stands in two of its shards, and a key is one sample's; leave one of both out, as by --where "
                "\"source <> '...'\""
            )
        raise UsageError(
            f"{one} and {other}: both have the key {key}, and a key is one sample's; pack them apart, and read both as one "
            "dataset, make_loader([OUT, OUT2], ...)"
        )


def recipe_and_plan(
    config: Config, condition: Condition, sources: Sequence[Shards], units: int
) -> tuple[Recipe, Plan]:
    """What determines the values and the order of the samples: from what they were packed stands with the dataset."""
    packed = {
        "of": [[part.fingerprint for part in source.parts] for source in sources],
        "rows": [[rows_hash(part.shards) for part in source.parts] for source in sources],
        "where": config.where,
        "keys": config.keys.name if config.keys else None,
        "subset": config.subset,
        "condition": condition.identity,
        "shuffle": config.shuffle,
    }
    first = sources[0].recipe["dataset"]
    others = [source.recipe["dataset"] for source in sources[1:]]
    dataset = {**first, "packed": packed, **({"others": others} if others else {})}
    plan: Plan = {"units": units, "samples_per_shard": config.samples_per_shard}
    return cast(Recipe, as_json({**sources[0].recipe, "dataset": dataset})), plan


def copy_null_caption(output: Destination, source: Shards) -> None:
    """The empty caption's arrays of all text fields, where the inputs have them."""
    arrays = {}
    for field in source.fields:
        with contextlib.suppress(FileNotFoundError, KeyError):
            with np.load(io.BytesIO(source.files_of(field).read(NULL_CAPTION)), allow_pickle=False) as file:
                arrays[field.name] = file[field.name]
    if arrays:
        out = io.BytesIO()
        np.savez(out, **arrays)
        output.put(NULL_CAPTION, out.getvalue())


def main(config: Config | None = None) -> None:
    config = config or parse("pack", Config, __doc__)
    logging.basicConfig(format="%(message)s")
    with one_line_errors(), output_errors(config.output, config.scratch):
        print(run(config))


if __name__ == "__main__":
    main()
