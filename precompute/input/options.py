"""`--options NAME=VALUE`: parsed, and as the recipe may have them."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from precompute.errors import UsageError

PYTHON = {"True": True, "False": False, "None": None}


def parse_option(option: str) -> tuple[str, Any]:
    """`parts=0-22` or `min_image_size=512`: the value as JSON where it is JSON, else as it stands."""
    name, separator, value = option.partition("=")
    if not separator or not name.isidentifier():
        raise UsageError(f"--options {option}: write each as NAME=VALUE, for example parts=0-22")
    if value in PYTHON:
        return name, PYTHON[value]
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parse_options(options: Iterable[str]) -> dict[str, Any]:
    """All of them by name. Raises UsageError for those that are no option of a dataset."""
    values = dict(parse_option(option) for option in options)
    secret = {"token", "storage_options"} & values.keys()
    # Options are part of the recipe, which is published.
    if secret:
        raise UsageError(
            f"--options {secret.pop()}=...: give it to `hf auth login` or the environment instead"
        )
    # datasets would take it for an option of the dataset.
    if values.pop("trust_remote_code", False):
        raise UsageError("--options trust_remote_code=...: no code of a dataset is run; leave it out")
    return values


def captions_options(captions: Sequence[str], order: str) -> dict[str, Any]:
    """--captions and --captions-order as options of a builder. Raises UsageError."""
    files: dict[str, str] = {}
    for given in captions:
        name, separator, file = given.partition("=")
        if not (name and separator and file):
            raise UsageError(
                f"--captions {given}: write it as NAME=FILE, for example llava=recaptions.parquet"
            )
        if name in files:
            raise UsageError(
                f"--captions {given}: there is a {name} already; give each file a NAME of its own"
            )
        files[name] = file
    return {"captions_from": files, "captions_order": order} if files else {}


def portable(option: str) -> str:
    """An option as the recipe has it: of a local path only the last part, of a URL no query, which may be a signature."""
    name, value = parse_option(option)
    bare = _bare(value)
    if bare == value:
        return option
    return f"{name}={bare if isinstance(bare, str) else json.dumps(bare)}"


def _bare(value: Any) -> Any:
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if isinstance(value, dict):
        return {name: _bare(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    if "://" in value:
        return value.partition("?")[0]
    return Path(value).name if os.path.isabs(value) or os.path.exists(value) else value
