"""The models that a recipe names, opened again: by their names on the Hub, or from the folders that the user names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from loader.recipe import Recipe
from precompute.encode.features import FeatureEncoder, features_value, open_feature_encoder
from precompute.encode.image import DTYPES, UNSHIFTED, ImageEncoder, open_image_encoder
from precompute.encode.models import quiet_libraries, recorded_name
from precompute.encode.stored import store_of
from precompute.encode.text import TextEncoder, open_text_encoder
from precompute.encode.text_spec import split_value, text_encoder_value
from precompute.errors import ModelError, PrecomputeError, UsageError
from precompute.input.recorded_source import tell_opened

Encoder = TypeVar("Encoder")
# What makes the value of its flag out of a part of a recipe and the model's place.
ValueOf = Callable[[dict[str, Any], str], str]


@dataclass(frozen=True)
class Models:
    """Models named by hand, where the recipe only knows a folder's name."""

    vae: str | None = None
    text_encoders: tuple[str, ...] = ()
    features: tuple[str, ...] = ()


def recipe_image_encoder(recipe: Recipe, models: Models) -> ImageEncoder:
    """The image encoder that a recipe names. Raises ModelError."""
    quiet_libraries()
    spec = recipe["image_encoder"]
    name = models.vae or hub_name("--vae", spec)
    name = f"{name.removesuffix(UNSHIFTED)}{UNSHIFTED}" if spec.get("unshifted") else name
    return open_image_encoder(name, device(), dtype_of(spec))


def recipe_text_encoders(recipe: Recipe, models: Models) -> tuple[list[TextEncoder], list[str]]:
    """The text encoders that a recipe names, or those named by hand; a note for each that is not at hand. Raises ModelError
    for one named by hand."""

    def opened(value: str, spec: dict[str, Any]) -> TextEncoder:
        return open_text_encoder(value, device(), dtype_of(spec), store_of(recipe))

    return _opened(
        "--text-encoder", recipe.get("text_encoders", []), models.text_encoders, text_encoder_value, opened
    )


def recipe_feature_encoders(recipe: Recipe, models: Models) -> tuple[list[FeatureEncoder], list[str]]:
    """The vision models that a recipe names, likewise."""

    def opened(value: str, spec: dict[str, Any]) -> FeatureEncoder:
        return open_feature_encoder(value, device(), dtype_of(spec))

    return _opened("--features", recipe.get("features", []), models.features, features_value, opened)


def _opened(
    flag: str,
    specs: Sequence[dict[str, Any]],
    by_hand: Sequence[str],
    value_of: ValueOf,
    open_one: Callable[[str, dict[str, Any]], Encoder],
) -> tuple[list[Encoder], list[str]]:
    quiet_libraries()
    encoders, notes = list[Encoder](), list[str]()
    given = with_recipe(flag, by_hand, specs, value_of)
    for spec in specs:
        name = given.get(spec.get("name") or "")
        if name is None and given:
            continue
        try:
            encoders.append(open_one(name or value_of(spec, hub_name(flag, spec)), spec))
        except PrecomputeError as error:
            if given:
                raise
            notes.append(
                f"{'features' if flag == '--features' else 'captions'} were not encoded again ({error})"
            )
    return encoders, notes


def with_recipe(
    flag: str, given: Sequence[str], specs: Sequence[dict[str, Any]], value_of: ValueOf
) -> dict[str, str]:
    """Values of a flag by NAME. A folder without options of its own is opened as the recipe had it: layer, length, template
    and all. Raises UsageError for a NAME that the recipe has not."""
    by_name = {str(spec.get("name") or ""): spec for spec in specs}
    values = {}
    for value in given:
        name, model, query = split_value(value)
        if name not in by_name:
            known = ", ".join(f"{known}=FOLDER" if known else "FOLDER" for known in by_name)
            raise UsageError(f"{flag} {value}: the shards were made with others; give {known or 'none'}")
        values[name] = value if query else value_of(by_name[name], model.removeprefix("auto:"))
    return values


def hub_name(flag: str, spec: dict[str, Any]) -> str:
    """Name and commit of a recipe's model. Raises ModelError where it came from a folder, of which only the name is known:
    what the Hub has under that name is another's."""
    name = recorded_name(spec)
    if name is None:
        raise ModelError(
            f"{flag}: the shards were made with a model from a folder, {str(spec.get('model'))!r}; give that folder as {flag}"
        )
    if name != "toy":
        tell_opened(f"{flag} {name}")
    return name


def dtype_of(spec: dict[str, Any]) -> str:
    """float16 decoders overflow; everything else as it was encoded. Raises ModelError for what a recipe should not say."""
    dtype = str(spec.get("dtype", "float32"))
    if dtype not in DTYPES:
        raise ModelError(f"the recipe's dtype {dtype!r} of a model is none of {', '.join(DTYPES)}")
    return "float32" if dtype == "float16" else dtype


def device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
