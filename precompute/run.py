"""Image-caption records in, WebDataset shards of latents and text embeddings out.

    accelerate launch precompute/run.py builders/cc12m --output latents/cc12m

Run the same command again after any interruption, on as many processes or machines as you like: finished units are
kept, the rest is done. Start it with `accelerate launch`, `torchrun`, SLURM or plain `python`, several times if you
like; processes find each other through the output folder.
"""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

from builders.archives import backoff
from loader.format import Split
from loader.printable import printable_lines
from precompute import push
from precompute.cloud.place import open_output
from precompute.commands import parse
from precompute.config import Config, check
from precompute.encode.devices import is_main, processes_here
from precompute.encode.models import quiet_libraries
from precompute.encode.presets import ChosenModels
from precompute.errors import PrecomputeError, UsageError, one_line_errors, output_errors
from precompute.hub.follow import PushGate, following
from precompute.input.caption_files import CaptionFiles
from precompute.input.open_records import open_records
from precompute.runtime.beside import image_encoder_of, names_models
from precompute.runtime.disk_budget import DiskBudget
from precompute.runtime.joined import told_of_captions
from precompute.runtime.leases import Gate, Leases
from precompute.runtime.progress import ProgressBar, summary
from precompute.runtime.session import Session, source_of, told_of_models
from precompute.runtime.stats import Stats
from precompute.shards.destination import Destination

if TYPE_CHECKING:
    from precompute.runtime.ray_driver import RaySession


def run(config: Config) -> None:
    """The whole job of one process. Raises PrecomputeError; another run can then take up the folder as it is."""
    check(config)
    destination = open_output(config.output, config.split, config.scratch, config.store_option)
    if is_main() and (models := told_of_models(config)):
        print(models, flush=True)
    with backoff.until(threading.Event()), opened(config, destination) as session:
        if is_main():
            manifest = session.keeper.manifest()
            done = manifest.splits[config.split].units_done
            what = config.beside or config.dataset
            if config.beside and not names_models(config):
                theirs = ChosenModels(image_encoder_of(manifest.recipe), ())
                print(printable_lines(f"--beside {what}:\n{theirs}"))
            print(f"{what} {config.split} -> {config.output}, on {session.device}: {done} of ", end="")
            print(f"{len(session.units)} units finished before", end="")
            print(f", {session.reopened} to do again" if config.retry_rejected else "", flush=True)
            if session.changed:
                print(session.changed, flush=True)
        work(session)


@contextlib.contextmanager
def opened(config: Config, destination: Destination) -> "Iterator[Session | RaySession]":
    """What works on the units: this process, or a Ray cluster."""
    if config.engine == "plain":
        yield Session.open(config, destination)
        return
    if processes_here() > 1:
        raise UsageError("--engine ray: start it once, by python rather than accelerate launch")
    try:
        from precompute.runtime.ray_cluster import connected
        from precompute.runtime.ray_driver import RaySession
    except ImportError as error:
        raise UsageError(f'--engine ray: {error}; pip install "latentmill[ray]"') from error
    with connected():
        stop_on_sigterm()  # Ray has put its own handler in place
        yield RaySession(config, destination)


def work(session: "Session | RaySession") -> None:
    """Finish all units, with whoever else is at it, and say what came of it."""
    started = time.monotonic()
    config, destination, keeper = session.config, session.destination, session.keeper
    with contextlib.closing(destination), contextlib.ExitStack() as stack:
        check = stack.enter_context(following(pushing(config), destination, config.lease_timeout))
        gates: list[Gate] = [PushGate(check)]
        if config.max_disk:
            budget = DiskBudget(destination, config.max_disk, config.lease_timeout, keeper.largest_unit)
            gates.append(stack.enter_context(contextlib.closing(budget)))
        leases = Leases(destination, session.units, config.lease_timeout, gates)
        stack.enter_context(contextlib.closing(leases))
        before = leases.finished()
        bar = ProgressBar(leases, session.num_rows, finished_before(session), is_main())
        stack.enter_context(contextlib.closing(bar))

        def on_batch(stats: Stats) -> None:
            check()
            bar.on_progress(stats)

        stats = session.work(leases, on_batch, on_commit=keeper.keep_fresh)
        manifest = keeper.refresh()
        split, new = manifest.splits[config.split], keeper.samples_since(before)
        bar.end(split.rows)
        joined = joined_of(session, split) if is_main() and new is not None else ""
    if is_main():
        print(summary(config.output, split, new, stats, time.monotonic() - started), flush=True)
        if joined:
            print(joined, flush=True)
        if not split.samples:
            raise PrecomputeError(
                f"{config.beside or config.dataset}: no row of split {config.split} became a sample; the reasons stand above"
            )


def finished_before(session: "Session | RaySession") -> tuple[int, int]:
    """How many units are finished, and their rows, for the one process that says so."""
    if not is_main():
        return 0, 0
    split = session.keeper.manifest().splits[session.config.split]
    return split.units_done, split.rows


def joined_of(session: "Session | RaySession", split: Split) -> str:
    """What became of captions from elsewhere, once all units are there."""
    config = session.config
    if not config.captions or not split.complete:
        return ""
    if isinstance(session, Session):
        files = session.records.joined
    elif config.beside:
        files = CaptionFiles(config.captions, "behind", ()).joined
    else:
        files = open_records(source_of(config)).joined
    return told_of_captions(files, session.destination, split.shards)


def pushing(config: Config) -> push.Config | None:
    """How to push, if this process is to. With little disk, often: what is not pushed cannot be deleted."""
    if config.push_to is None or not is_main():
        return None
    every = 30.0 if config.max_disk else 300.0
    return push.Config(
        config.output,
        config.push_to,
        follow=True,
        every=every,
        private=config.private,
        delete_pushed=config.delete_pushed,
    )


def stop_on_sigterm() -> None:
    """Unwind at the first SIGTERM or Ctrl-C: leases are given back and temporary files removed. Then stop."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for later in (signal.SIGTERM, signal.SIGINT):
            signal.signal(later, signal.SIG_IGN)
        sys.exit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)


def main(config: Config | None = None) -> None:
    config = config or parse("run", Config, __doc__)
    logging.basicConfig(format="%(message)s")
    quiet_libraries()
    stop_on_sigterm()
    with one_line_errors(), output_errors(config.output, config.scratch):
        run(config)


if __name__ == "__main__":
    main()
