"""Shards to the Hub: resumable, in few commits, each of which leaves a whole dataset there.

    python precompute/push.py latents/cc12m USER/cc12m-latents
    python precompute/push.py latents/cc12m USER/cc12m-latents --follow --delete-pushed     # while precompute runs

A commit holds some finished units and the manifest of exactly the units that are then there, so a reader never meets a
manifest that names a missing shard. What is on the Hub already, by its sha256, is not sent again: after any failure run
the same command again. The token comes from `hf auth login` or HF_TOKEN.
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from precompute.errors import one_line_errors
from precompute.hub.hub_dataset import Target
from precompute.hub.local_dataset import Finished
from precompute.hub.retry import PushError

POLL = 2.0  # seconds between looks for new units with --follow


@dataclass(frozen=True)
class Config:
    output: tyro.conf.Positional[Path]
    """Folder with the shards."""

    repo: tyro.conf.Positional[str]
    """Dataset on the Hub, USER/REPO; made if it is not there."""

    private: bool = False
    """Make the dataset private. One that is there already, and public, is refused."""

    revision: str | None = None
    """Branch to push to, made if it is not there. Default: main."""

    create_pr: bool = False
    """Open a pull request rather than push to the branch."""

    follow: bool = False
    """Push finished units while precompute runs, and end when all are there."""

    every: float = 300.0
    """Seconds between commits with --follow; the Hub allows about a hundred an hour."""

    delete_pushed: bool = False
    """Delete each local tar once the Hub has it, by its sha256. Markers and sidecars stay, so precompute goes on."""


def push(config: Config, stop: threading.Event | None = None) -> str:
    """Push, and return the address. stop: ends a --follow early, once what is finished by then is pushed."""
    target = Target(config)
    target.open()
    stop, last = stop or threading.Event(), float("-inf")
    while True:
        stopping = stop.is_set()  # before looking, so that nothing finished by then is left
        began = time.monotonic()
        local = Finished.read(config.output)
        looked = time.monotonic() - began
        done = local.complete or stopping or not config.follow
        due = done or time.monotonic() - last >= config.every
        if local.markers and due and target.push(local, final=done):
            last = time.monotonic()
        if done:
            break
        stop.wait(max(POLL, 20 * looked))  # to read thousands of markers takes a while
    if not local.markers:
        raise PushError(
            f"{config.output}: no unit is finished yet; run precompute/run.py first, or push with --follow"
        )
    return target.address


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    with one_line_errors():
        print(push(config))


if __name__ == "__main__":
    main()
