"""The flags of precompute/preview.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from precompute.flags.reading import takes


@dataclass(frozen=True)
class MainFlags:
    """What is shown, and where."""

    output: Annotated[tyro.conf.Positional[str], takes("FOLDER|URL")]
    """Folder with the shards, hf://datasets/USER/REPO[@REVISION], or s3://, gs:// or az://BUCKET/PREFIX."""

    to: Annotated[Path | None, takes("FOLDER")] = None
    """Folder for preview.png and report.html. Default: the shards' own."""

    split: Annotated[str | None, takes("SPLIT")] = None
    """Split to show. Default: the first."""

    num_samples: Annotated[int, takes("N")] = 12
    """Samples on the contact sheet, spread over the shards."""

    store_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=VALUE")] = ()
    """Of shards in a store: NAME=VALUE for its client, as for the verb run; repeat for several."""


@dataclass(frozen=True)
class SourceFlags:
    """What stands beside it."""

    source: Annotated[str | None, takes("DATASET")] = None
    """DATASET with the source images. Default: the one that the recipe names."""

    data_dir: Annotated[Path | None, takes("FOLDER")] = None
    """Folder with the raw archives, as the run had it."""

    options: Annotated[tuple[str, ...], takes("NAME=VALUE ...")] = ()
    """Options of the dataset's builder that have to differ from those that the shards were made with, `links=FILE` say."""


@dataclass(frozen=True)
class ModelFlags:
    """What decodes."""

    vae: Annotated[str | None, takes("ID|FOLDER")] = None
    """Image encoder to decode with, where it came from a folder. Default: the one that the recipe names."""


@dataclass(frozen=True)
class Config(ModelFlags, SourceFlags, MainFlags):
    """All flags, in groups."""
