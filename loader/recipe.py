"""The recipe, everything that determines a value: its hash, and how two differ."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Required, TypedDict, cast

from loader import border

BASE = "base"  # in the recipe of a layer, the fingerprint of the shards that it lies beside; in its plan, their plan and rows

MOST_ENCODERS = 1000


class Recipe(TypedDict, total=False):
    """Everything that determines a value of a dataset's shards. A key that a recipe lacks is one that its makers had not.

    dataset: its path, version and options. image_encoder, text_encoders, features: model, commit, weights, scale, length and so on.
    crop, bucket_step, resize, color_profile, version: how pixels are made (precompute/input/pixels.py).
    captions: files of captions that were added later: kind, sha256 and how many of a sample. store: dtype of what is stored; without
    it float16. base: of a layer, the fingerprint of the shards that it lies beside.
    """

    dataset: dict[str, Any]
    image_encoder: dict[str, Any]
    text_encoders: list[dict[str, Any]]
    features: list[dict[str, Any]]
    resolutions: list[int]
    posterior: str
    seed: int | None
    flip: bool
    captions: list[dict[str, Any]]
    store: str
    crop: str
    bucket_step: int | None
    resize: str
    color_profile: str
    version: int
    base: str


class Plan(TypedDict, total=False):
    """What the units of a split are: rows of which archives, or of which base's shards."""

    units: Required[int]
    dataset: str
    parts: str | None
    sources: str | None
    prepared: bool
    limit: int | None
    samples_per_shard: int
    base: dict[str, Any]


def parse_recipe(value: Any, place: str) -> Recipe:
    """What a file holds as its recipe. Raises FormatError where a part is of another type."""
    recipe = border.mapping(value, place)
    for name in recipe.keys() & {"dataset", "image_encoder"}:
        border.mapping(recipe[name], f"{place}.{name}")
    for name in ("text_encoders", "captions"):
        for spec in border.sequence(recipe.get(name, []), f"{place}.{name}", MOST_ENCODERS):
            border.mapping(spec, f"{place}.{name}")
    return cast(Recipe, recipe)


def parse_plan(value: Any, place: str) -> Plan:
    """What a file holds as the plan of a split. Raises FormatError where it does not say how many units there are."""
    plan = border.mapping(value, place)
    border.count(border.part(plan, "units", place), f"{place}.units")
    return cast(Plan, plan)


def fingerprint(recipe: Recipe) -> str:
    """sha256 of the recipe as canonical JSON: equal for equal values, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def as_json(value: Any) -> Any:
    """The value as it comes back from a file: tuples are lists, keys are strings."""
    return json.loads(json.dumps(value))


def recipe_differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """One line for each value that differs, as `image_encoder.weights: 'a1..' there, 'b2..' here`.

    Both are compared as JSON, for one of them comes from a file."""
    if not prefix:
        old, new = as_json(old), as_json(new)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in sorted(old.keys() | new.keys()):
            lines += recipe_differences(
                old.get(name), new.get(name), f"{prefix}.{name}" if prefix else str(name)
            )
        return lines
    return [] if old == new else [f"{prefix}: {old!r} there, {new!r} here"]


def joined_recipe(base: Recipe, layers: Sequence[Recipe]) -> Recipe:
    """The recipe of a folder and the layers beside it: what it would be had all been made at once.

    What is a list in both goes on (text encoders, features, resolutions), each once; a layer that says otherwise of anything else stands
    whole under `layers`.
    """
    joined: dict[str, Any] = {**base}
    apart: list[Any] = []
    for layer in layers:
        own: dict[str, Any] = {
            name: value
            for name, value in layer.items()
            if name not in (BASE, "dataset") and value is not None
        }
        lists = {name for name, value in own.items() if isinstance(value, list)}
        there = {name: joined.get(name) or [] for name in lists}
        if any(joined.get(name, own[name]) != own[name] for name in own.keys() - lists) or not all(
            isinstance(value, list) for value in there.values()
        ):
            apart.append(own)
        else:
            new = {name: [value for value in own[name] if value not in there[name]] for name in lists}
            joined |= own | {name: [*there[name], *new[name]] for name in lists}
    return cast(Recipe, {**joined, "layers": apart} if apart else joined)
