"""The recipe, everything that determines a value: its hash, and how two differ."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

BASE = "base"  # in the recipe of a layer, the fingerprint of the shards that it lies beside; in its plan, their plan and rows


def fingerprint(recipe: dict[str, Any]) -> str:
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


def joined_recipe(base: dict[str, Any], layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The recipe of a folder and the layers beside it: what it would be had all been made at once.

    What is a list in both goes on (text encoders, features, resolutions); a layer that says otherwise of anything else stands
    whole under `layers`.
    """
    joined, apart = dict(base), list[Any]()
    for layer in layers:
        own = {
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
            joined |= own | {name: [*there[name], *own[name]] for name in lists}
    return {**joined, "layers": apart} if apart else joined
