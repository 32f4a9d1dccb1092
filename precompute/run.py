"""Image-caption records in, WebDataset shards of latents and text embeddings out.

    accelerate launch precompute/run.py builders/cc12m --split train --output latents/cc12m

Run the same command again after any interruption, on as many processes or machines as you like: finished units are
kept, the rest is done. Start it with `accelerate launch`, `torchrun`, SLURM or plain `python`, several times if you
like; processes find each other through the output folder.
"""

import contextlib
import dataclasses
import io
import logging
import signal
import sys
import time
from types import FrameType
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from loader.format import NULL_CAPTION, as_json
from precompute import push
from precompute.commands import parse
from precompute.config import SDXL_TEXT, Config, check, check_repeats
from precompute.encode.batch_encoder import BatchEncoder
from precompute.encode.devices import is_main, pick_device
from precompute.encode.image import ImageEncoder, open_image_encoder
from precompute.encode.text import TextEncoder, open_text_encoder
from precompute.errors import ModelError, PrecomputeError, UsageError, one_line_errors, output_errors
from precompute.hub.follow import PushGate, following
from precompute.input import pixels
from precompute.input.records import Records, Source
from precompute.runtime.disk_budget import DiskBudget
from precompute.runtime.leases import Gate, Leases
from precompute.runtime.pipeline import Pipeline
from precompute.runtime.progress import default_threads, progress_bar, summary
from precompute.runtime.stats import Stats
from precompute.runtime.unit_output import Output
from precompute.shards.destination import Destination
from precompute.shards.manifest import ManifestKeeper
from precompute.shards.output_folder import OutputFolder, open_folder


def check_factor(config: Config, encoder: ImageEncoder) -> None:
    edges = [("--resolutions", resolution) for resolution in config.resolutions]
    for flag, edge in edges + ([("--buckets", config.buckets)] if config.buckets else []):
        if edge % encoder.factor:
            near = max(1, round(edge / encoder.factor)) * encoder.factor
            raise UsageError(
                f"{flag} {edge}: not divisible by {encoder.factor}, the factor of --vae {config.vae}; use {near}"
            )


def open_text_encoders(config: Config, device: torch.device) -> list[TextEncoder]:
    encoders = [open_text_encoder(value, device, config.dtype) for value in config.text_encoder or SDXL_TEXT]
    names = [field.name for encoder in encoders for field in encoder.fields]
    if len(set(names)) != len(names):
        raise UsageError(
            "--text-encoder: give every encoder but one a NAME of its own, as in t5=google/t5-v1_1-xxl"
        )
    return encoders


def make_recipe(
    config: Config, records: Records, image: ImageEncoder, texts: list[TextEncoder]
) -> dict[str, Any]:
    """Everything that determines a value; equal recipes may share a folder."""
    posterior = config.posterior if image.has_posterior else "mode"
    recipe = {
        "dataset": records.recipe,
        "image_encoder": image.recipe,
        "text_encoders": [encoder.recipe for encoder in texts],
        "resolutions": list(config.resolutions),
        "posterior": posterior,
        "seed": config.seed if posterior == "sample" or config.crop == "random" else None,
        "flip": config.flip,
        **pixels.recipe(config.buckets, config.crop, color_profile(records)),
    }
    return as_json(recipe)


def color_profile(records: Records) -> str:
    """What becomes of pixels that are not sRGB: an option of our datasets; those of others are converted."""
    return str(records.recipe.get("color_profile", "srgb"))


def write_null_caption(output: Destination, texts: list[TextEncoder]) -> None:
    """`null_caption.npz`: the empty caption's arrays by field name, for classifier-free guidance."""
    arrays = {name: array for encoder in texts for name, array in encoder.encode([""])[0].items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ModelError(
                f"--text-encoder: {name} of the empty caption does not fit into float16; take layer=-1, whose states are "
                "normalised, or add norm to the options of --text-encoder"
            )
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    output.put(NULL_CAPTION, out.getvalue())


def run(config: Config) -> None:
    """The whole job of one process. Raises PrecomputeError; another run can then take up the folder as it is."""
    check(config)
    open_folder("--output", config.output)
    records = Records(source_of(config))
    device = pick_device()
    image_encoder = open_image_encoder(config.vae, device, config.dtype)
    check_factor(config, image_encoder)
    if config.compile:
        image_encoder.compile()
    texts = open_text_encoders(config, device)
    encoder = BatchEncoder(
        image_encoder,
        texts,
        config.resolutions,
        config.posterior,
        config.seed,
        config.flip,
        fixed_size=config.buckets is None,
        fill_to=config.batch_size if config.compile else None,
    )
    recipe = make_recipe(config, records, image_encoder, texts)
    output = OutputFolder(config.output, config.split)
    keeper = ManifestKeeper(output, recipe, encoder.fields, records.plan)
    keeper.start()
    again = keeper.reopen(config.retry_rejected)
    write_null_caption(output, texts)
    if is_main():
        done = keeper.manifest().splits[config.split].units_done
        print(f"{config.dataset} {config.split} -> {config.output}, on {device}: {done} of ", end="")
        print(f"{len(records.units)} units finished before", end="")
        print(f", {again} to do again" if config.retry_rejected else "", flush=True)
    work(config, records, encoder, output, keeper, recipe)


def work(
    config: Config,
    records: Records,
    encoder: BatchEncoder,
    destination: Destination,
    keeper: ManifestKeeper,
    recipe: dict[str, Any],
) -> None:
    """Finish all units, with whoever else is at it, and say what came of it."""
    started = time.monotonic()
    output = Output(
        destination,
        config.samples_per_shard,
        recipe,
        records.plan,
        config.batch_size,
        on_commit=keeper.keep_fresh,
    )
    threads = config.num_threads or default_threads()

    def read(data: bytes, key: str) -> pixels.Picture:
        place = pixels.place_of(config.crop, config.seed, key)
        return pixels.read_picture(data, config.resolutions, config.buckets, place, color_profile(records))

    with contextlib.closing(destination), contextlib.ExitStack() as stack:
        check = stack.enter_context(following(pushing(config), config.lease_timeout))
        gates: list[Gate] = [PushGate(check)]
        if config.max_disk:
            budget = DiskBudget(destination, config.max_disk, config.lease_timeout, keeper.largest_unit)
            gates.append(stack.enter_context(contextlib.closing(budget)))
        leases = Leases(destination, records.units, config.lease_timeout, gates)
        stack.enter_context(contextlib.closing(leases))
        before = leases.finished()
        on_progress = stack.enter_context(progress_bar(leases, is_main()))

        def on_batch(stats: Stats) -> None:
            check()
            on_progress(stats)

        stats = Pipeline(records, leases, encoder, output, read, threads, on_batch).run()
        manifest = keeper.refresh()
    if is_main():
        new = keeper.samples_since(before)
        split = manifest.splits[config.split]
        print(summary(split, new, stats, time.monotonic() - started), flush=True)
        if not split.samples:
            raise PrecomputeError(
                f"{config.dataset}: no row of split {config.split} became a sample; the reasons stand above"
            )


def pushing(config: Config) -> push.Config | None:
    """How to push, if this process is to. With little disk, often: what is not pushed cannot be deleted."""
    if config.push_to is None or not is_main():
        return None
    every, delete = 30.0 if config.max_disk else 300.0, config.delete_pushed
    return push.Config(
        config.output, config.push_to, config.private, follow=True, every=every, delete_pushed=delete
    )


def source_of(config: Config) -> Source:
    """The flags that say what to read."""
    return Source(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Source)})


def stop_on_sigterm() -> None:
    """Unwind at the first SIGTERM or Ctrl-C: leases are given back and temporary files removed. Then stop."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for later in (signal.SIGTERM, signal.SIGINT):
            signal.signal(later, signal.SIG_IGN)
        sys.exit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)


def main() -> None:
    with one_line_errors():
        check_repeats(sys.argv)
    config = parse("run", Config, __doc__)
    logging.basicConfig(format="%(message)s")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    stop_on_sigterm()
    with one_line_errors(), output_errors(config.output):
        run(config)


if __name__ == "__main__":
    main()
