"""The recipe, everything that determines a value: its hash, and how two differ."""

import hashlib
import json
from typing import Any


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
