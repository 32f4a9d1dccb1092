"""Image-caption records in, WebDataset shards of latents and text embeddings out.

    accelerate launch precompute/run.py builders/cc12m --split train --output latents/cc12m

Run the same command again after any interruption, on as many processes or machines as you like: finished units are
kept, the rest is done. Start it with `accelerate launch`, `torchrun`, SLURM or plain `python`, several times if you
like; processes find each other through the output folder.
"""

import contextlib
import logging
import signal
import sys
import time
from types import FrameType

import diffusers
import transformers

from precompute import push
from precompute.commands import parse
from precompute.config import Config, check, check_repeats
from precompute.encode.devices import is_main
from precompute.encode.presets import DEFAULT
from precompute.errors import PrecomputeError, one_line_errors, output_errors
from precompute.hub.follow import PushGate, following
from precompute.runtime.disk_budget import DiskBudget
from precompute.runtime.leases import Gate, Leases
from precompute.runtime.progress import progress_bar, summary
from precompute.runtime.session import Session, models_of
from precompute.runtime.stats import Stats
from precompute.shards.output_folder import OutputFolder, open_folder


def run(config: Config) -> None:
    """The whole job of one process. Raises PrecomputeError; another run can then take up the folder as it is."""
    check(config)
    open_folder("--output", config.output)
    if is_main() and (config.for_model or config.model):
        print(f"--for {config.for_model or DEFAULT}:\n{models_of(config)}", flush=True)
    session = Session.open(config, OutputFolder(config.output, config.split))
    if is_main():
        done = session.keeper.manifest().splits[config.split].units_done
        print(f"{config.dataset} {config.split} -> {config.output}, on {session.device}: {done} of ", end="")
        print(f"{len(session.records.units)} units finished before", end="")
        print(f", {session.reopened} to do again" if config.retry_rejected else "", flush=True)
    work(session)


def work(session: Session) -> None:
    """Finish all units, with whoever else is at it, and say what came of it."""
    started = time.monotonic()
    config, destination, keeper = session.config, session.destination, session.keeper
    with contextlib.closing(destination), contextlib.ExitStack() as stack:
        check = stack.enter_context(following(pushing(config), config.lease_timeout))
        gates: list[Gate] = [PushGate(check)]
        if config.max_disk:
            budget = DiskBudget(destination, config.max_disk, config.lease_timeout, keeper.largest_unit)
            gates.append(stack.enter_context(contextlib.closing(budget)))
        leases = Leases(destination, session.records.units, config.lease_timeout, gates)
        stack.enter_context(contextlib.closing(leases))
        before = leases.finished()
        on_progress = stack.enter_context(progress_bar(leases, is_main()))

        def on_batch(stats: Stats) -> None:
            check()
            on_progress(stats)

        stats = session.work(leases, on_batch, on_commit=keeper.keep_fresh)
        manifest = keeper.refresh()
    if is_main():
        new = keeper.samples_since(before)
        split = manifest.splits[config.split]
        print(summary(split, new, stats, time.monotonic() - started), flush=True)
        if not split.samples:
            raise PrecomputeError(
                f"{config.dataset}: no row of split {config.split} became a sample; the reasons stand above"
            )


def pushing(config: Config) -> push.Config | None:
    """How to push, if this process is to. With little disk, often: what is not pushed cannot be deleted."""
    if config.push_to is None or not is_main():
        return None
    every, delete = 30.0 if config.max_disk else 300.0, config.delete_pushed
    return push.Config(
        config.output, config.push_to, config.private, follow=True, every=every, delete_pushed=delete
    )


def stop_on_sigterm() -> None:
    """Unwind at the first SIGTERM or Ctrl-C: leases are given back and temporary files removed. Then stop."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for later in (signal.SIGTERM, signal.SIGINT):
            signal.signal(later, signal.SIG_IGN)
        sys.exit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)


def main() -> None:
    with one_line_errors():
        check_repeats(sys.argv)
    config = parse("run", Config, __doc__)
    logging.basicConfig(format="%(message)s")
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    stop_on_sigterm()
    with one_line_errors(), output_errors(config.output):
        run(config)


if __name__ == "__main__":
    main()
