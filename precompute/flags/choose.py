"""The flags of precompute/choose.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from precompute.flags.reading import takes


@dataclass(frozen=True)
class MainFlags:
    """What is chosen from, and where the choice goes."""

    path: Annotated[tyro.conf.Positional[str], takes("FOLDER|URL")]
    """Folder with the shards, hf://datasets/USER/REPO[@REVISION], or s3://, gs:// or az://BUCKET/PREFIX."""

    layers: Annotated[tuple[str, ...], takes("FOLDER|URL ...")] = ()
    """Layers beside the shards: only samples that are whole in all of them count."""

    split: Annotated[str, takes("SPLIT")] = "train"
    """Split of the shards."""

    output: Annotated[Path | None, takes("FILE")] = None
    """Parquet file to write the keys of the chosen samples to."""

    store_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=VALUE")] = ()
    """Of shards in a store: NAME=VALUE for its client, as for the verb run; repeat for several."""


@dataclass(frozen=True)
class SelectFlags:
    """Which samples."""

    where: Annotated[str | None, takes("SQL")] = None
    """SQL over key, caption, width, height, source and the extras by name, as in "width >= 512 and aesthetic > 5"."""

    keys: Annotated[Path | None, takes("FILE")] = None
    """File of keys: parquet or csv with a column `key`, or text with one a line."""

    subset: Annotated[tuple[float, float] | None, takes("FROM TO")] = None
    """Keys whose hash lies there: 0 0.99 to train on, and 0.99 1 to hold out."""

    duplicates: bool = False
    """List groups of nearly the same picture, and choose of each the largest one alone."""

    distance: Annotated[int | None, takes("BITS")] = None
    """Of --duplicates: bits of 64 in which the perceptual hashes of two such pictures may differ. Default: 6."""


@dataclass(frozen=True)
class Config(SelectFlags, MainFlags):
    """All flags, in groups."""
