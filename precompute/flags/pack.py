"""The flags of precompute/pack.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from precompute.flags.place import PLACE
from precompute.flags.reading import takes


@dataclass(frozen=True)
class MainFlags:
    """What goes in, and where it goes."""

    inputs: Annotated[tyro.conf.Positional[tuple[str, ...]], takes("FOLDER|URL ...")]
    """Folders with shards, hf://datasets/USER/REPO[@REVISION], or s3://, gs:// or az://BUCKET/PREFIX, each followed by the layers
    beside it."""

    output: Annotated[Path | str, PLACE]
    """Folder for the packed shards, or s3://, gs:// or az://BUCKET/PREFIX. Processes that share it share the work."""

    split: Annotated[str, takes("SPLIT")] = "train"
    """Split to pack."""


@dataclass(frozen=True)
class SelectFlags:
    """Which samples."""

    where: Annotated[str | None, takes("SQL")] = None
    """Only samples for which this SQL is true, as in "width >= 512 and aesthetic > 5"."""

    keys: Annotated[Path | None, takes("FILE")] = None
    """Only samples of this file of keys: parquet or csv with a column `key`, or text with one a line."""

    subset: Annotated[tuple[float, float] | None, takes("FROM TO")] = None
    """Only keys whose hash lies there: 0 0.99 to train on, and 0.99 1 to hold out."""


@dataclass(frozen=True)
class ShardFlags:
    """How they are stored."""

    shuffle: Annotated[int | None, takes("SEED")] = None
    """Seed by which the samples are shuffled over all shards. Default: they stay in order."""

    samples_per_shard: Annotated[int, takes("N")] = 4096
    """Samples a tar holds at most; all hold as many, give or take one."""

    scratch: Annotated[Path | None, takes("FOLDER")] = None
    """With --output to a store: folder on a disk here for the units in work. Default: the system's for temporary files."""

    store_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=VALUE")] = ()
    """Of inputs or --output in a store: NAME=VALUE for its client, as for the verb run; repeat for several."""

    lease_timeout: Annotated[float, takes("SECONDS")] = 60.0
    """Seconds after which the unit of a process on another machine that has gone silent is taken over."""


@dataclass(frozen=True)
class Config(ShardFlags, SelectFlags, MainFlags):
    """All flags, in groups."""
