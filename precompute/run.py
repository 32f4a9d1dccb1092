"""Image-caption records in, WebDataset shards of latents and text embeddings out.

    accelerate launch precompute/run.py builders/cc12m --split train --output latents/cc12m

Run the same command again after any interruption, on as many processes or machines as you like: finished units are
kept, the rest is done. Start it with `accelerate launch`, `torchrun`, SLURM or plain `python`, several times if you
like; processes find each other through the output folder.
"""

import dataclasses
import functools
import io
import logging
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import diffusers
import numpy as np
import torch
import transformers
import tyro

from loader.format import NULL_CAPTION
from precompute import pixels
from precompute.encode import BatchEncoder
from precompute.encoders import ImageEncoder, open_image_encoder
from precompute.errors import ModelError, UsageError, one_line_errors, output_errors
from precompute.manifest import ManifestKeeper
from precompute.pipeline import Output, Pipeline
from precompute.plan import Leases
from precompute.progress import default_threads, progress_bar, summary
from precompute.records import Records, Source
from precompute.shards import write_shared
from precompute.text_encoders import TextEncoder, open_text_encoder

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


@dataclass(frozen=True)
class Config:
    dataset: tyro.conf.Positional[str]
    """builders/NAME, or any path that `datasets.load_dataset` takes (then see --image-column)."""

    output: Path
    """Folder for the shards. Processes that share it share the work."""

    name: str | None = None
    """Config of the dataset, for example `small`."""

    split: str = "train"
    """Split to read."""

    data_dir: Path | None = None
    """Folder with the raw archives, where they are on disk already."""

    options: tuple[str, ...] = ()
    """Options of the dataset's builder as NAME=VALUE, for example `parts=0-22 min_image_size=512`."""

    image_column: str = "image"
    """Column with the image, for datasets that are not ours."""

    caption_column: str = "caption"
    """Column with the caption or a list of captions, for datasets that are not ours."""

    caption_cleaning: Literal["none", "light", "deepfloyd"] | None = None
    """How captions are cleaned. Default: the builder's own, and light for datasets that are not ours."""

    prepare: bool = False
    """Build the `datasets` cache first and work on row ranges of it, rather than read the archives in place."""

    limit: int | None = None
    """Stop after this many source rows: a trial run."""

    vae: str = SDXL
    """Image encoder: a Hub id with an optional @REVISION, a folder, or `toy` (no download). A `vae` subfolder is found."""

    text_encoder: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """[NAME=]ID[@REVISION][?layer=-2&length=77&pooled&subfolder=text_encoder_2], or `toy`; repeat for several. The first
    writes caption_latents, one with a NAME caption_latents_NAME. Default: SDXL's first."""

    resolutions: tuple[int, ...] = (256, 512)
    """Edges of the square crops, in pixels. One decode serves all."""

    batch_size: int = 32
    """Images encoded at once. Halved by itself where the device's memory is too small."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the encoders. Values are stored as float16."""

    flip: bool = False
    """Encode the mirrored pictures too, as fields with `_flipped` in their names; the loader then draws one of the two."""

    buckets: int | None = None
    """Step in pixels of aspect-ratio buckets, for example 64: keep the shape of a picture, to the nearest multiples of
    this step, at the area of --resolutions. Each tar holds one size."""

    posterior: Literal["moments", "sample", "mode"] = "moments"
    """What to store of the VAE's posterior: raw mean and std (sampled anew each time the loader reads), one scaled
    sample, or the scaled mean."""

    samples_per_shard: int = 4096
    """Samples a tar holds at most; with --prepare, rows of a unit."""

    num_threads: int | None = None
    """Decode threads of each process. Default: the cores, divided by the processes on this machine."""

    seed: int = 0
    """Of the noise that --posterior sample draws."""

    compile: bool = False
    """torch.compile the image encoder: slower to start, faster on a GPU."""

    lease_timeout: float = 60.0
    """Seconds after which the unit of a process on another machine that has gone silent is taken over."""


def check(config: Config) -> None:
    """Refuse impossible flags before anything is loaded. Raises UsageError."""
    positive = {
        "--batch-size": config.batch_size,
        "--samples-per-shard": config.samples_per_shard,
        "--num-threads": config.num_threads,
        "--limit": config.limit,
        "--lease-timeout": config.lease_timeout,
        "--buckets": config.buckets,
    }
    for flag, value in positive.items():
        if value is not None and value <= 0:
            raise UsageError(f"{flag} {value}: give at least 1")
    if not config.resolutions or len(set(config.resolutions)) != len(config.resolutions):
        raise UsageError(f"--resolutions {config.resolutions}: name each resolution once")
    for resolution in config.resolutions:
        if not 8 <= resolution <= 8192:
            raise UsageError(f"--resolutions {resolution}: pixels, from 8 to 8192")


def check_factor(config: Config, encoder: ImageEncoder) -> None:
    edges = [("--resolutions", resolution) for resolution in config.resolutions]
    for flag, edge in edges + ([("--buckets", config.buckets)] if config.buckets else []):
        if edge % encoder.factor:
            near = max(1, round(edge / encoder.factor)) * encoder.factor
            raise UsageError(
                f"{flag} {edge}: not divisible by {encoder.factor}, the factor of --vae {config.vae}; use {near}"
            )


def open_text_encoders(config: Config, device: torch.device) -> list[TextEncoder]:
    encoders = [open_text_encoder(value, device, config.dtype) for value in config.text_encoder or (SDXL,)]
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
    return {
        "dataset": records.recipe,
        "image_encoder": image.recipe,
        "text_encoders": [encoder.recipe for encoder in texts],
        "resolutions": list(config.resolutions),
        "posterior": posterior,
        "seed": config.seed if posterior == "sample" else None,
        "flip": config.flip,
        **pixels.recipe(config.buckets),
    }


def write_null_caption(output: Path, texts: list[TextEncoder]) -> None:
    """`null_caption.npz`: the empty caption's arrays by field name, for classifier-free guidance."""
    arrays = {name: array for encoder in texts for name, array in encoder.encode([""])[0].items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ModelError(
                f"--text-encoder: {name} of the empty caption does not fit into float16; take layer=-1, whose states are "
                "normalised, or --dtype float32"
            )
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    write_shared(output, NULL_CAPTION, out.getvalue())


def open_output(output: Path) -> None:
    """Make the folder, and write to it once. Raises UsageError where that fails."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise UsageError(
            f"--output {output}: cannot write there ({error.strerror}); name another folder"
        ) from error


def pick_device() -> torch.device:
    """This process's accelerator, by LOCAL_RANK; the CPU where there is none, or under `accelerate launch --cpu`."""
    if not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in (
        "1",
        "true",
    ):
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    device = torch.device(kind.type, int(os.environ.get("LOCAL_RANK", 0)) % torch.accelerator.device_count())
    torch.accelerator.set_device_index(device.index)
    torch.backends.cudnn.deterministic = True  # the same batch gives the same bytes, on any day
    return device


def run(config: Config) -> None:
    """The whole job of one process. Raises PrecomputeError; another run can then take up the folder as it is."""
    check(config)
    started, is_main = time.monotonic(), int(os.environ.get("RANK", 0)) == 0
    open_output(config.output)
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
        config.buckets is None,
    )
    recipe = make_recipe(config, records, image_encoder, texts)
    keeper = ManifestKeeper(config.output, config.split, recipe, encoder.fields, records.plan)
    keeper.start()
    write_null_caption(config.output, texts)
    leases = Leases(config.output, config.split, records.units, config.lease_timeout)
    before = leases.finished()
    if is_main:
        print(f"{config.dataset} {config.split} -> {config.output}, on {device}: {len(before)} of ", end="")
        print(f"{len(records.units)} units finished before", flush=True)
    output = Output(
        config.output,
        config.split,
        config.samples_per_shard,
        recipe,
        records.plan,
        config.batch_size,
        on_commit=keeper.refresh,
    )
    threads = config.num_threads or default_threads()
    read = functools.partial(pixels.read_picture, resolutions=config.resolutions, step=config.buckets)
    try:
        with progress_bar(leases, is_main) as on_progress:
            stats = Pipeline(records, leases, encoder, output, read, threads, on_progress).run()
        manifest = keeper.refresh(force=True)
    finally:
        leases.close()
    if is_main:
        new = keeper.samples_since(before)
        print(summary(manifest.splits[config.split], new, stats, time.monotonic() - started), flush=True)


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
    config = tyro.cli(Config, description=__doc__)
    logging.basicConfig(format="%(message)s")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    stop_on_sigterm()
    with one_line_errors(), output_errors(config.output):
        run(config)


if __name__ == "__main__":
    main()
