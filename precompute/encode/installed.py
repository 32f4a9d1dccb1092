"""Encoders of installed packages: `--vae NAME:ID` and `--text-encoder NAME:ID`, NAME by an entry point.

`latentmill.image_encoders` names a function (ID, device, dtype) -> ImageEncoder; `latentmill.text_encoders` one
(ID) -> (model, tokenizer), which are as those of transformers.
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Literal


def installed(kind: Literal["image", "text"], value: str) -> tuple[Callable[..., Any], str] | None:
    """What opens an encoder, and the ID behind its name; None where no package has that name."""
    name, colon, rest = value.partition(":")
    found = entry_points(group=f"latentmill.{kind}_encoders", name=name) if colon else ()
    for point in found:
        return point.load(), rest
    return None
