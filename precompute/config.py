"""The flags of precompute/run.py: one dataclass, which is the command line too."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from builders.core.account import REASONS
from loader.format import SHARD_NAME
from precompute.cloud.place import PLACE, check_options, check_place, check_scratch, is_url
from precompute.encode.presets import Model
from precompute.encode.stored import Store
from precompute.errors import UsageError
from precompute.flags import takes


@dataclass(frozen=True)
class MainFlags:
    """What goes in, and where it goes."""

    dataset: Annotated[tyro.conf.Positional[str], takes("DATASET")] = ""
    """builders/NAME, or any path that `datasets.load_dataset` takes (then see --image-column). With --beside only where its
    images are read again, and it is not the dataset that the base's recipe names."""

    output: Annotated[Path | str, PLACE] = tyro.MISSING
    """Folder for the shards, or s3://, gs:// or az://BUCKET/PREFIX. Processes that share it share the work."""

    beside: Annotated[str | None, takes("BASE")] = None
    """BASE, a folder with finished shards, hf://datasets/USER/REPO[@REVISION], or s3://, gs:// or az://BUCKET/PREFIX: add fields to
    its samples, as a layer in --output. Captions are those in the shards; images are read out of the source again, and held by
    key. What is to be made is named: --text-encoder, --vae or --resolutions."""


@dataclass(frozen=True)
class DataFlags:
    """What is read."""

    name: Annotated[str | None, takes("CONFIG")] = None
    """Config of the dataset, for example `small`."""

    split: Annotated[str, takes("SPLIT")] = "train"
    """Split to read."""

    data_dir: Annotated[Path | None, takes("FOLDER")] = None
    """Folder with the raw archives, where they are on disk already."""

    options: Annotated[tuple[str, ...], takes("NAME=VALUE ...")] = ()
    """Options of the dataset's builder as NAME=VALUE, for example `parts=0-22 min_image_size=512`."""

    image_column: Annotated[str, takes("COLUMN")] = "image"
    """Column with the image, for datasets that are not ours."""

    caption_column: Annotated[str, takes("COLUMN")] = "caption"
    """Column with the caption or a list of captions, for datasets that are not ours."""

    prepare: bool = False
    """Build the `datasets` cache first and work on row ranges of it, rather than read the archives in place."""

    limit: Annotated[int | None, takes("ROWS")] = None
    """Stop after this many source rows: a trial run."""

    retry_rejected: Annotated[tuple[str, ...], takes("REASON ...")] = ()
    """Do the finished units again that hold rows rejected for these reasons, for example `bad_archive missing_image`. The
    same command goes on with a retry that was interrupted."""

    redo_changed: bool = False
    """Do the finished units again whose local source files have another size or time than when they were read."""


@dataclass(frozen=True)
class EncoderFlags:
    """What encodes."""

    for_model: Annotated[Model | None, tyro.conf.arg(name="for")] = None
    """Store what this model's own diffusers pipeline takes: its autoencoder, text encoders, layers, templates, lengths,
    padding and masks. They are printed as the flags they stand for, and any of these flags overrides them. Default: sdxl."""

    model: Annotated[str | None, takes("ID|FOLDER")] = None
    """Folder or Hub id with the parts of --for's pipeline. Default: the Hub's."""

    vae: Annotated[str | None, takes("ID|FOLDER|toy")] = None
    """Image encoder: a Hub id with an optional @REVISION, a folder, or `toy` (no download). A `vae` subfolder is found. With
    ?shift=0 behind it latents are scaled and not shifted, as some pipelines take them."""

    text_encoder: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("[NAME=]ID[?OPTIONS]")] = ()
    """[NAME=]ID[@REVISION][?OPTION&OPTION...], or `toy`, instead of the encoders of --for; repeat for several. Without an ID,
    as in t5=?length=256, it changes options of the one of --for. The first writes caption_latents, one with a
    NAME caption_latents_NAME. Options: layer=-2 (or several, 9,18,27), length=77 (tokens), padding=full, masked or trim,
    template=TEXT with {} for the caption (or @FILE), skip=34 (of the template's first tokens; skip=template counts those before
    {}), pooled (or pooled=only, no states), subfolder=NAME, side=left (where padding goes), multiple=16 (pad to multiples, hide
    nothing), mask=real or one-more (store what a mask shows of padded text), norm (the final norm on earlier layers),
    case=lower, clean=ftfy or deepfloyd (as Wan's and PixArt's pipelines clean text), keep=first (the BOS before what is
    skipped), empty=bare (the empty caption without template), quoted (only the text in quotation marks)."""

    features: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=ID[?OPTIONS]")] = ()
    """NAME=ID[@REVISION][?OPTION&OPTION...]: store the patch tokens that a vision model (CLIP, DINOv2, DINOv3, SigLIP, SigLIP2) has of the
    same crop, as features_NAME; repeat for several. Options: layer=-1, size=224 (pixels; default: the model's own), pooled (its
    pooled vector instead), subfolder=NAME."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the encoders."""

    batch_size: Annotated[int, takes("N")] = 32
    """Images encoded at once. Halved by itself where the device's memory is too small."""

    compile: bool = False
    """torch.compile the image encoder: slower to start, faster on a GPU. Each unit's last batch is filled up."""


@dataclass(frozen=True)
class PictureFlags:
    """What is made of a picture."""

    resolutions: Annotated[tuple[int, ...], takes("PIXELS ...")] = (256, 512)
    """Edges of the square crops, in pixels. One decode serves all."""

    crop: Literal["center", "random"] = "center"
    """Part of a picture that is kept where its shape is another: the middle, or one drawn from its key and --seed."""

    flip: bool = False
    """Encode the mirrored pictures too, as fields with `_flipped` in their names; the loader then draws one of the two."""

    buckets: Annotated[int | None, takes("PIXELS")] = None
    """Step in pixels of aspect-ratio buckets, for example 64: keep the shape of a picture, to the nearest multiples of
    this step, at the area of --resolutions. Each tar holds one size."""

    posterior: Literal["moments", "sample", "mode"] = "moments"
    """What to store of the VAE's posterior: raw mean and std (sampled anew each time the loader reads), one scaled
    sample, or the scaled mean."""

    seed: Annotated[int, takes("N")] = 0
    """Of the noise that --posterior sample draws, and of --crop random."""


@dataclass(frozen=True)
class CaptionFlags:
    """What is made of its captions."""

    caption_cleaning: Literal["none", "light", "deepfloyd"] | None = None
    """How captions are cleaned. Default: the builder's own, and light for datasets that are not ours."""

    captions: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=FILE")] = ()
    """NAME=FILE, a .parquet, .csv or .jsonl, here or hf://, with a column `key`, `url` or `source` and a column `caption` (or
    a list, `captions`): captions of kind NAME for the records that it names; repeat for several. Beside a base: a layer of them."""

    captions_order: Literal["front", "behind"] = "front"
    """Where captions from --captions stand: before the dataset's own, so that the first is the one embedded, or behind."""

    max_captions: Annotated[int, takes("N")] = 1
    """Captions of a picture that are embedded at most; the loader then draws one of them each time."""


@dataclass(frozen=True)
class ShardFlags:
    """How it is stored."""

    store: Store = "float16"
    """Precision of what is stored. bfloat16 is for hidden states beyond float16's 65,504; it keeps three bits less of all else,
    and numpy reads it as the bits, uint16."""

    samples_per_shard: Annotated[int, takes("N")] = 4096
    """Samples a tar holds at most; with --prepare, rows of a unit."""

    scratch: Annotated[Path | None, takes("FOLDER")] = None
    """With --output to a store: folder on a disk here for the units in work and those on their way, three at most. Default:
    the system's for temporary files."""

    store_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=VALUE")] = ()
    """With --output to a store, or --beside in one: NAME=VALUE for its client, such as endpoint=https://HOST, region=auto,
    profile=NAME or anonymous=true; repeat for several. What is not given comes from the environment. Written down nowhere."""


@dataclass(frozen=True)
class HubFlags:
    """Where it is published."""

    push_to: Annotated[str | None, takes("USER/REPO")] = None
    """Dataset on the Hub, USER/REPO, to push finished units to while the run goes on; see the verb push."""

    private: bool = False
    """With --push-to: make the dataset private, if it is made."""

    delete_pushed: bool = False
    """With --push-to: delete each tar here once the Hub has it, by its sha256."""

    max_disk: Annotated[float | None, takes("GB")] = None
    """GB of tars here at most, with --delete-pushed: before it takes up another unit, a process waits for
    room. Not with a store, which does not fill up: three units of a process lie in --scratch at most."""


@dataclass(frozen=True)
class EngineFlags:
    """Who does the work."""

    engine: Literal["plain", "ray"] = "plain"
    """Who deals the units: plain processes among themselves, or this one to workers on a Ray cluster: that of RAY_ADDRESS,
    or of this machine."""

    ray_workers: Annotated[int | None, takes("N")] = None
    """With --engine ray: so many workers on a CPU each, rather than one a GPU."""

    num_threads: Annotated[int | None, takes("N")] = None
    """Decode threads of each process. Default: the cores, divided by the processes on this machine."""

    lease_timeout: Annotated[float, takes("SECONDS")] = 60.0
    """Seconds after which the unit of a process on another machine that has gone silent is taken over."""


@dataclass(frozen=True)
class Config(
    EngineFlags, HubFlags, ShardFlags, CaptionFlags, PictureFlags, EncoderFlags, DataFlags, MainFlags
):
    """All flags, in groups: dataclasses order their fields from the last base to the first."""


def check_repeats(arguments: Sequence[str]) -> None:
    """Refuse a list flag given twice: of the two, the first would be forgotten. Raises UsageError."""
    for flag in ("--options", "--resolutions", "--retry-rejected"):
        if sum(argument.partition("=")[0] == flag for argument in arguments) > 1:
            raise UsageError(f"{flag}: give it once, with all values behind it, as in {flag} A B")


def check(config: Config) -> None:
    """Refuse impossible flags before anything is loaded. Raises UsageError."""
    if not SHARD_NAME.fullmatch(f"{config.split}-00000"):
        raise UsageError(
            f"--split {config.split}: name one split, whole, as in train; for its first rows use --limit"
        )
    if not config.dataset and not config.beside:
        raise UsageError("DATASET: name one, as builders/demo; only with --beside it may be left out")
    if config.vae == "none" and not config.beside:
        raise UsageError("--vae none: only with --beside, for a layer without an autoencoder")
    check_place("--output", config.output)
    check_store(config)
    positive = {
        "--batch-size": config.batch_size,
        "--samples-per-shard": config.samples_per_shard,
        "--num-threads": config.num_threads,
        "--limit": config.limit,
        "--max-captions": config.max_captions,
        "--lease-timeout": config.lease_timeout,
        "--buckets": config.buckets,
        "--ray-workers": config.ray_workers,
        "--max-disk": config.max_disk,
    }
    for flag, value in positive.items():
        if value is not None and not value > 0:  # nor not a number
            raise UsageError(f"{flag} {value}: give more than 0")
    if not config.resolutions or len(set(config.resolutions)) != len(config.resolutions):
        raise UsageError(f"--resolutions {config.resolutions}: name each resolution once")
    for resolution in config.resolutions:
        if not 8 <= resolution <= 8192:
            raise UsageError(f"--resolutions {resolution}: pixels, from 8 to 8192")
    if config.max_disk and not config.delete_pushed:
        raise UsageError(
            f"--max-disk {config.max_disk:g}: only with --delete-pushed, or it would never be free again"
        )
    if config.ray_workers and config.engine != "ray":
        raise UsageError(f"--ray-workers {config.ray_workers}: only with --engine ray")
    if (config.delete_pushed or config.private) and not config.push_to:
        raise UsageError(f"--{'delete-pushed' if config.delete_pushed else 'private'}: only with --push-to")
    for reason in config.retry_rejected:
        if reason not in (*REASONS, "non_finite"):
            raise UsageError(
                f"--retry-rejected {reason}: the reasons are {', '.join([*REASONS, 'non_finite'])}"
            )


def check_store(config: Config) -> None:
    """Raises UsageError where a flag and the kind of --output do not go together."""
    if not is_url(config.output):
        check_scratch(config.scratch, config.output)
        check_options(config.store_option, config.beside)
    elif config.max_disk:
        raise UsageError(
            f"--max-disk {config.max_disk:g}: a store does not fill up, and --scratch holds three units of a process at most. Leave it out"
        )
