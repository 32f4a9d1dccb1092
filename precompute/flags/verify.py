"""The flags of precompute/verify.py."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from precompute.flags.reading import takes


@dataclass(frozen=True)
class MainFlags:
    """What is checked."""

    output: Annotated[tyro.conf.Positional[str], takes("FOLDER|URL")]
    """Folder with the shards, hf://datasets/USER/REPO[@REVISION], or s3://, gs:// or az://BUCKET/PREFIX."""

    store_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=VALUE")] = ()
    """Of shards in a store: NAME=VALUE for its client, as for the verb run; repeat for several."""

    quick: bool = False
    """Look at markers, names, sizes and counts only, and on the Hub at the hashes that it keeps."""

    decode: Annotated[int, takes("N")] = 0
    """Decode this many samples too, and hold them against their source images where those are at hand."""

    beside: Annotated[str | None, takes("BASE")] = None
    """BASE of a layer: check too that units, shards and keys are those of the base, and that it has not changed."""

    num_threads: Annotated[int, takes("N")] = min(32, 2 * (os.cpu_count() or 1))
    """Shards read at once; more than there are cores, since some wait for the disk."""

    json: bool = False
    """Print one JSON object: what was checked, and all findings."""


@dataclass(frozen=True)
class SourceFlags:
    """What it is held against."""

    source: Annotated[str | None, takes("DATASET")] = None
    """Read DATASET again, and check that every one of its rows is written or rejected, under its own caption."""

    data_dir: Annotated[Path | None, takes("FOLDER")] = None
    """Folder with the raw archives, as the run had it."""

    options: Annotated[tuple[str, ...], takes("NAME=VALUE ...")] = ()
    """Options of the dataset's builder that have to differ from those that the shards were made with, `links=FILE` say."""


@dataclass(frozen=True)
class ModelFlags:
    """What decodes and compares."""

    vae: Annotated[str | None, takes("ID|FOLDER")] = None
    """Image encoder to decode with, where it came from a folder. Default: the one that the recipe names."""

    text_encoder: Annotated[tuple[str, ...], takes("[NAME=]ID ...")] = ()
    """Text encoders to compare with, where they came from a folder. Default: those that the recipe names."""

    features: Annotated[tuple[str, ...], takes("NAME=ID ...")] = ()
    """Vision models to compare features with, where they came from a folder. Default: those that the recipe names."""


@dataclass(frozen=True)
class Config(ModelFlags, SourceFlags, MainFlags):
    """All flags, in groups."""
