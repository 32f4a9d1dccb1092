"""Words for people: what report, contact sheet and dataset card share."""

from typing import Any

from loader.printable import printable


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """(`image_encoder.scale`, `0.13025`) for every leaf of a recipe."""
    if isinstance(value, dict) and value:
        return [leaf for k, v in value.items() for leaf in flatten(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [leaf for i, item in enumerate(value) for leaf in flatten(item, f"{prefix}[{i}]")]
    text = ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return [(prefix, printable(text))]


def file_size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"
