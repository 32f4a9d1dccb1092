"""What `--beside BASE` makes of the other flags: a layer is read, cropped and dealt out as its base was."""

import json
from dataclasses import fields, replace
from typing import Any, Literal, cast

from loader.format import Field
from loader.recipe import BASE, Recipe
from precompute.config import Config
from precompute.encode.image import UNSHIFTED
from precompute.errors import UsageError
from precompute.input.base import Base
from precompute.input.base_records import BaseRecords
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


def like_base(config: Config, base: Base) -> Config:
    """The flags of a layer, with those that the base decides. Raises UsageError for one that says otherwise."""
    defaults, told = {field.name: field.default for field in fields(Config)}, _decided(base)
    for name in DECIDED:
        if getattr(config, name) not in (defaults[name], told.get(name)):
            raise UsageError(
                f"--{name.replace('_', '-')}: with --beside it is as the base has it; leave it out"
            )
    recipe = base.recipe
    crop = cast(Literal["center", "random"], recipe.get("crop", "center"))
    step = recipe.get("bucket_step")
    seed = int(recipe.get("seed") or 0) if crop == "random" else config.seed
    named = config.vae or config.text_encoder or config.features or config.for_model or config.model
    vae = config.vae if named else _image_encoder(base)
    captions = int(cast(dict[str, Any], recipe).get("max_captions", 1))
    return replace(config, crop=crop, buckets=step, seed=seed, vae=vae, max_captions=captions)


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
    if not with_images:
        for flag, value in (
            ("DATASET", config.dataset),
            ("--data-dir", config.data_dir),
            ("--options", config.options),
            ("--captions", config.captions),
        ):
            if value:
                raise UsageError(f"{flag} {value}: the captions lie in --beside {base.url}; leave it out")
        return BaseRecords(base, None)
    if "dataset" not in base.plan:
        raise UsageError(
            f"--beside {base.url}: its samples were packed, so their images are in no one source; "
            "make the layer beside the shards that they were packed of"
        )
    # Where they stand, the recipe says.
    files = captions_options(config.captions, config.captions_order).get("captions_from")
    joined = [f"captions_from={json.dumps(files)}"] if files else []
    where = Where(config.dataset or None, config.data_dir, (*config.options, *joined))
    return BaseRecords(base, open_recorded(base.manifest, base.split, where))


def layer_recipe(recipe: Recipe, base: Base) -> Recipe:
    """What of a recipe is a layer's own, and the fingerprint of the shards that it lies beside."""
    images, pixels = recipe.get("image_encoder") is not None, bool(recipe.get("features"))
    kept = {
        name: value
        for name, value in recipe.items()
        if (images or name not in OF_IMAGES) or (pixels and name in OF_PIXELS)
        if (images or pixels or name not in OF_PIXELS)
        if value != [] and (recipe["text_encoders"] or name != "max_captions")
    }
    return cast(Recipe, {**kept, BASE: base.manifest.fingerprint})


def check_new(made: list[Field], base: Base) -> None:
    """Raises UsageError where a layer would have a field that its base has."""
    for field in made:
        if field.name in base.fields:
            what = (
                "give the encoder another NAME"
                if field.kind not in ("moments", "latents")
                else "give other --resolutions"
            )
            raise UsageError(f"--beside {base.url}: it has {field.name} already; {what}")


def _image_encoder(base: Base) -> str:
    """The `--vae` that the base was made with."""
    about = base.recipe.get("image_encoder") or {}
    model, revision = about.get("model"), about.get("revision")
    if not isinstance(model, str) or not (model == "toy" or revision):
        raise UsageError(
            "--vae: the base's recipe names no autoencoder on the Hub; name one, or a --text-encoder"
        )
    name = f"{model}@{revision}" if revision else model
    return f"{name}{UNSHIFTED}" if about.get("unshifted") else name
