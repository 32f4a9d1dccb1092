"""The flags of precompute/run.py: one dataclass, which is the command line too."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from precompute.flags.place import PLACE
from precompute.flags.reading import takes

Model = Literal[
    "sd15", "sdxl", "sd3", "flux1", "flux2-dev", "flux2-klein", "qwen-image", "z-image", "sana", "pixart-sigma", "lumina2",
    "hunyuan-image", "wan", "chroma", "kandinsky5", "hidream", "auraflow", "cogview4", "ltx", "micro-diffusion",
]  # fmt: skip
Store = Literal["float16", "bfloat16"]


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
