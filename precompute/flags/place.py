"""A folder, or a place in an object store, as a flag's value."""

import re
from pathlib import Path

import tyro

SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(?P<rest>/.*|$)")


def place(text: str) -> Path | str:
    """The folder, or the URL as it stands: a Path would swallow one of its slashes."""
    return text if SCHEME.fullmatch(text) else Path(text)


PLACE = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="FOLDER|URL",
    instance_from_str=lambda given: place(given[0]),
    is_instance=lambda value: isinstance(value, (Path, str)),
    str_from_instance=lambda value: [str(value)],
)
