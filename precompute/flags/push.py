"""The flags of precompute/push.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from precompute.flags.place import PLACE
from precompute.flags.reading import takes


@dataclass(frozen=True)
class MainFlags:
    """What goes in, and where it goes."""

    output: Annotated[tyro.conf.Positional[Path | str], PLACE]
    """Folder with the shards, or s3://, gs:// or az://BUCKET/PREFIX."""

    repo: Annotated[tyro.conf.Positional[str], takes("USER/REPO")]
    """Dataset on the Hub, USER/REPO; made if it is not there."""

    follow: bool = False
    """Push finished units while precompute runs, and end when all are there. An outage of the Hub is sat out."""

    every: Annotated[float, takes("SECONDS")] = 300.0
    """Seconds between commits with --follow; the Hub allows about a hundred an hour."""


@dataclass(frozen=True)
class HubFlags:
    """How it stands on the Hub."""

    private: bool = False
    """Make the dataset private. One that is there already, and public, is refused."""

    revision: Annotated[str | None, takes("BRANCH")] = None
    """Branch to push to, made if it is not there. Default: main."""

    create_pr: bool = False
    """Open a pull request rather than push to the branch."""


@dataclass(frozen=True)
class StorageFlags:
    """Where it lies, here."""

    delete_pushed: bool = False
    """Delete each tar of the output once the Hub has it, by its sha256. Markers and sidecars stay, so precompute goes on."""

    scratch: Annotated[Path | None, takes("FOLDER")] = None
    """Of shards in a store: folder on a disk here, through which they go, 5 GB or one unit at a time. Default: the system's for
    temporary files."""

    store_option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, takes("NAME=VALUE")] = ()
    """Of shards in a store: NAME=VALUE for its client, as for the verb run; repeat for several."""


@dataclass(frozen=True)
class Config(StorageFlags, HubFlags, MainFlags):
    """All flags, in groups."""
