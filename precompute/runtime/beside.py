"""What `--beside BASE` makes of the other flags: a layer is read, cropped and dealt out as its base was."""

import functools
import json
import shlex
from dataclasses import fields, replace
from typing import Any, Literal, cast

from builders.archives import backoff
from loader.field_names import further_kind, picture_place
from loader.format import Field, recipe_differences
from loader.recipe import BASE, Recipe
from precompute.cloud.place import open_shards, options_for
from precompute.config import Config
from precompute.encode.image import UNSHIFTED
from precompute.encode.text_spec import text_encoder_value
from precompute.errors import UsageError
from precompute.input.base import Base
from precompute.input.base_records import BaseRecords
from precompute.input.caption_files import JOINED, CaptionFiles
from precompute.input.options import captions_options
from precompute.input.recorded_source import Where, open_recorded

# The base decides them.
DECIDED = (
    "name",
    "limit",
    "prepare",
    "image_column",
    "caption_column",
    "caption_cleaning",
    "samples_per_shard",
    "crop",
    "buckets",
    "max_captions",
)
# Parts of a recipe that say how images are read and encoded.
OF_IMAGES = ("image_encoder", "resolutions", "posterior", "seed", "flip")
OF_PIXELS = ("flip", "crop", "bucket_step", "resize", "color_profile", "version")
NOTHING = "none"  # as --vae, no autoencoder


def open_base(config: Config) -> Base:
    """What --beside names. Raises UsageError."""
    url = config.beside or ""
    options = options_for(url, config.output, config.store_option)
    # A run waits out what a reader would give up for.
    return Base(url, config.split, functools.partial(open_shards, options=options, patience=backoff.PATIENCE))


def like_base(config: Config, base: Base) -> Config:
    """The flags of a layer, with those that the base decides. Raises UsageError for one that says otherwise."""
    defaults, told = {field.name: field.default for field in fields(Config)}, _decided(base)
    adds = adds_captions(config)
    for name in DECIDED:
        if adds and name == "max_captions":
            continue
        if getattr(config, name) not in (defaults[name], told.get(name)):
            raise UsageError(
                f"--{name.replace('_', '-')}: with --beside it is as the base has it; leave it out"
            )
    recipe = base.recipe
    crop = cast(Literal["center", "random"], recipe.get("crop", "center"))
    step = recipe.get("bucket_step")
    seed = int(recipe.get("seed") or 0) if crop == "random" else config.seed
    vae = config.vae if names_models(config) else image_encoder_of(base.recipe)
    captions = config.max_captions if adds else int(cast(dict[str, Any], recipe).get("max_captions", 1))
    return replace(config, crop=crop, buckets=step, seed=seed, vae=vae, max_captions=captions)


def names_models(config: Config) -> bool:
    """Whether any flag names a model: without one, a layer is of the base's own autoencoder."""
    return bool(config.vae or config.text_encoder or config.features or config.for_model or config.model)


def adds_captions(config: Config) -> bool:
    """Whether a layer is of captions that the base has not. Raises UsageError where it would be more than that."""
    if not config.captions or config.vae not in (None, NOTHING) or config.features or not config.text_encoder:
        return False
    if len(config.captions) > 1:
        raise UsageError(
            f"--captions {config.captions[1]}: with --beside one file makes one layer; make another one of it, beside the same"
        )
    return True


def added_captions(config: Config, base: Base) -> CaptionFiles:
    """The captions that a layer adds to its base. Raises UsageError where the base has some under that name."""
    added = CaptionFiles(config.captions, "behind", ())
    for file in added:
        if file.name in base.caption_kinds:
            raise UsageError(
                f"--captions {file.name}=...: --beside {base.url} has captions of kind {file.name} already; give another NAME"
            )
    return added


def _decided(base: Base) -> dict[str, Any]:
    """Flags as the base was made with, as far as its recipe and plan say."""
    recipe, dataset, plan = cast(dict[str, Any], base.recipe), base.recipe["dataset"], base.plan
    names = ("name", "image_column", "caption_column", "caption_cleaning")
    return {name: dataset.get(name) for name in names} | {
        "limit": plan.get("limit"),
        "prepare": plan.get("prepared"),
        "samples_per_shard": plan.get("samples_per_shard"),
        "crop": recipe.get("crop"),
        "buckets": recipe.get("bucket_step"),
        "max_captions": recipe.get("max_captions"),
    }


def layer_records(config: Config, base: Base, with_images: bool) -> BaseRecords:
    """The rows of a layer. Raises UsageError where its images are needed, and their source is another one or not at hand."""
    added = added_captions(config, base) if adds_captions(config) else None
    if not with_images:
        for flag, value in (
            ("DATASET", config.dataset),
            ("--data-dir", config.data_dir),
            ("--options", config.options),
        ):
            if value:
                raise UsageError(f"{flag} {value}: the captions lie in --beside {base.url}; leave it out")
        return BaseRecords(base, None, added)
    if "dataset" not in base.plan:
        raise UsageError(
            f"--beside {base.url}: its samples were packed, so their images are in no one source; "
            "make the layer beside the shards that they were packed of"
        )
    if config.captions and JOINED not in base.recipe["dataset"]:
        values = [text_encoder_value(spec, str(spec["model"])) for spec in base.recipe["text_encoders"]]
        raise UsageError(
            f"--captions {config.captions[0]}: name what embeds them, and no --vae, as in "
            f"{' '.join(f'--text-encoder {shlex.quote(value)}' for value in values)}, as {base.url} has it"
        )
    # Where they stand, the recipe says.
    files = captions_options(config.captions, config.captions_order).get("captions_from")
    joined = [f"captions_from={json.dumps(files)}"] if files else []
    where = Where(config.dataset or None, config.data_dir, (*config.options, *joined))
    return BaseRecords(base, open_recorded(base.manifest, base.split, where))


def layer_recipe(recipe: Recipe, base: Base, added: CaptionFiles | None, most: int) -> Recipe:
    """What of a recipe is a layer's own, and the fingerprint of the shards that it lies beside.

    added: captions that it adds, of which so many of a sample are embedded at most.
    """
    images, pixels = recipe.get("image_encoder") is not None, bool(recipe.get("features"))
    kept = {
        name: value
        for name, value in recipe.items()
        if (images or name not in OF_IMAGES) or (pixels and name in OF_PIXELS)
        if (images or pixels or name not in OF_PIXELS)
        if value != [] and ((recipe["text_encoders"] and not added) or name != "max_captions")
    }
    files = added.sha256 if added else {}
    captions = [{"kind": kind, "sha256": sha256, "most": most} for kind, sha256 in files.items()]
    return cast(
        Recipe, {**kept, **({"captions": captions} if captions else {}), BASE: base.manifest.fingerprint}
    )


def check_new(made: list[Field], recipe: Recipe, base: Base) -> None:
    """Raises UsageError where a layer would have a field that its base has, or captions by another encoder than the base's own."""
    if any(further_kind(field.name) for field in made):
        _check_encoders(recipe, base)
    there = {picture_place(name): name for name in base.fields}
    for field in made:
        if known := there.get(picture_place(field.name)):
            same = base.recipe.get("image_encoder") == recipe.get("image_encoder")
            what = (
                "give the encoder another NAME"
                if field.kind not in ("moments", "latents")
                else "give other --resolutions"
                if same
                else "what another --vae makes of that size is a dataset of its own: run without --beside, into another --output"
            )
            raise UsageError(f"--beside {base.url}: it has {known} already; {what}")


def _check_encoders(recipe: Recipe, base: Base) -> None:
    """Raises UsageError where captions that are added would be embedded otherwise than those of the base."""
    known = {spec.get("name"): spec for spec in base.recipe.get("text_encoders") or []}
    for spec in recipe["text_encoders"]:
        wrong = recipe_differences(known.get(spec["name"], spec), spec, "text_encoder")
        wrong += recipe_differences(base.recipe.get("store"), recipe.get("store"), "store")
        if wrong:
            raise UsageError(
                f"--text-encoder: the captions of --beside {base.url} were embedded otherwise ({wrong[0]}), and one would be drawn "
                "among both; give the encoder as then, or another NAME"
            )


def image_encoder_of(recipe: Recipe) -> str:
    """The `--vae` that shards of a recipe were made with. Raises UsageError where it is none that can be had by its name."""
    about = recipe.get("image_encoder") or {}
    model, revision = about.get("model"), about.get("revision")
    if not isinstance(model, str) or not (model == "toy" or revision):
        raise UsageError(
            "--vae: the base's recipe names no autoencoder on the Hub; name one, or a --text-encoder"
        )
    name = f"{model}@{revision}" if revision else model
    return f"{name}{UNSHIFTED}" if about.get("unshifted") else name
