"""The flags of precompute/make.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from precompute.flags.reading import takes


@dataclass(frozen=True)
class MainFlags:
    """What is made."""

    recipe: Annotated[tyro.conf.Positional[str], takes("RECIPE")]
    """Name of a file in precompute/recipes, or path of a TOML file."""

    small: bool = False
    """The `small` config of each dataset, about 1 %."""

    only: Annotated[tuple[str, ...], takes("NAME ...")] = ()
    """Names of datasets; default: all of the recipe."""

    plan: bool = False
    """Only estimate rows, disk and device hours; encodes a small sample to measure."""

    sample: Annotated[str, takes("DATASET")] = "builders/demo"
    """Dataset that --plan encodes to measure bytes and images/s."""


@dataclass(frozen=True)
class FolderFlags:
    """Where it lies."""

    raw: Annotated[Path, takes("FOLDER")] = Path("raw")
    """Folder for the raw archives, RAW/NAME each."""

    latents: Annotated[Path, takes("FOLDER")] = Path("latents")
    """Folder for the shards, LATENTS/NAME each."""

    stream: bool = False
    """Read the archives in place, on the Hub, instead of downloading them first."""


@dataclass(frozen=True)
class RunFlags:
    """How the runs are started."""

    launch: Annotated[str, takes("COMMAND")] = "accelerate launch"
    """How a run is started."""

    flags: Annotated[str, takes("FLAGS")] = ""
    """More flags of the run, as in --flags="--batch-size 64". They come last, and win."""


@dataclass(frozen=True)
class HubFlags:
    """Where it is published."""

    push_to: Annotated[str | None, takes("USER")] = None
    """User or organisation of the Hub: pushes to PUSH_TO/RECIPE-NAME."""

    private: bool = False
    """Make the pushed datasets private, and not only those whose licence forbids to share them."""


@dataclass(frozen=True)
class Config(HubFlags, RunFlags, FolderFlags, MainFlags):
    """All flags, in groups."""
