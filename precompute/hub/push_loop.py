"""The flags of a push, and its loop: look at what is finished, send it, and with `follow` wait for more."""

import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from precompute.cloud.place import PLACE, open_finished
from precompute.commands import launched
from precompute.flags import takes
from precompute.hub.hub_dataset import Target
from precompute.hub.local_dataset import Finished
from precompute.hub.retry import PushError, Refusal
from precompute.shards.destination import Destination

logger = logging.getLogger("precompute")

POLL = 2.0  # seconds between looks for new units with --follow
OUTAGE = 60.0  # seconds between tries with --follow while the Hub cannot be reached


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


def push(config: Config, stop: threading.Event | None = None, output: Destination | None = None) -> str:
    """Push, and return the address. stop: ends a --follow early, once what is finished by then is pushed. output: opened."""
    with contextlib.ExitStack() as stack:
        if output is None:
            output = stack.enter_context(
                contextlib.closing(open_finished(config.output, config.scratch, config.store_option))
            )
        return _push(config, output, stop or threading.Event())


def _push(config: Config, output: Destination, stop: threading.Event) -> str:
    target = Target(
        output, config.repo, config.revision, config.private, config.create_pr, config.delete_pushed
    )
    target.open()
    last, local = float("-inf"), None
    while True:
        stopping = stop.is_set()  # before looking, so that nothing finished by then is left
        began = time.monotonic()
        local = Finished.read(output, local)
        looked = time.monotonic() - began
        done = local.complete or stopping or not config.follow
        due = done or time.monotonic() - last >= config.every
        pause = max(POLL, 20 * looked)  # to read thousands of markers takes a while
        try:
            if local.markers and due and target.push(local, final=done):
                last = time.monotonic()
        except PushError as error:
            if stopping or not config.follow or isinstance(error, Refusal):
                raise
            logger.warning("%s; the next try is in %d s", error, OUTAGE)
            done, pause = False, OUTAGE
        if done:
            break
        stop.wait(pause)
    if not local.markers:
        raise PushError(
            f"{config.output}: no unit is finished yet; run `{launched()}` first, or push with --follow"
        )
    return target.address
