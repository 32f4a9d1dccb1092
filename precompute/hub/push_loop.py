"""The flags of a push, and its loop: look at what is finished, send it, and with `follow` wait for more."""

import contextlib
import logging
import threading
import time

from precompute.cloud.place import open_finished
from precompute.commands import launched, retyped
from precompute.flags.push import Config as Config
from precompute.hub.hub_dataset import Target
from precompute.hub.local_dataset import Finished
from precompute.hub.retry import PushError, Refusal
from precompute.shards.destination import Destination

logger = logging.getLogger("precompute")

POLL = 2.0  # seconds between looks for new units with --follow
OUTAGE = 60.0  # seconds between tries with --follow while the Hub cannot be reached


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
            f"{config.output}: no unit is finished yet; run `{launched()}` first, or beside it {retyped('--follow')}"
        )
    return target.address
