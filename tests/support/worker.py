"""One process of a precompute run, started by fork from a server that has imported everything: in milliseconds."""

import errno
import itertools
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import diffusers
import huggingface_hub.constants
import torch
from tqdm import tqdm

from builders.archives import backoff
from precompute import pack, push, run
from precompute.config import Config
from precompute.errors import one_line_errors, output_errors
from precompute.hub import follow, push_loop
from precompute.shards.tar_writer import Buffer, TarWriter
from tests.support.waiting import hurried

diffusers.AutoencoderKL  # noqa: B018  read once for all processes, which takes a second
DEAD = 9  # exit code of a process that die_at has ended
TOY: dict[str, Any] = {"vae": "toy", "text_encoder": ("toy",), "dtype": "float32", "resolutions": (64,)}


def work(
    output: Path,
    data: Path,
    slow: float = 0.0,
    full_disk: int | None = None,
    die_at: int | None = None,
    signal_at: tuple[int, int] | None = None,
    hub: str | None = None,
    timeout: float = 60.0,
    dataset: str = "builders/webdataset",
    packed: tuple[str, ...] = (),
    **options: Any,
) -> None:
    """`precompute/run.py DATASET` over the tars, or other files, in `data`; or `precompute/pack.py` of the shards `packed`.

    slow: seconds that each write to a tar takes longer. full_disk: seed; the disk is full at a random write.
    die_at: the process is gone at the n-th change to the output folder.
    signal_at: at the n-th write to a tar the process sends itself this signal, and at no other time.
    hub: where the Hub is, which is asked often. options: more of run.Config.
    """
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore that a killed process would leak
    logging.disable(logging.WARNING)
    sys.stdout = open(os.devnull, "w")
    sys.stderr = sys.stdout if full_disk is None else sys.stderr
    left = random.Random(full_disk).randrange(1, 400) if full_disk is not None else -1
    put, writes = TarWriter.put, itertools.count(1)
    number, name = signal_at or (0, 0)

    def hindered(self: TarWriter, data: Buffer) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if next(writes) == number:
            os.kill(os.getpid(), name)
        time.sleep(slow)
        put(self, data)

    TarWriter.put = hindered  # type: ignore[method-assign]
    if die_at is not None:
        die_at_change(output, die_at)
    if hub is not None:
        turn_to(hub, output)
    run.stop_on_sigterm()
    with one_line_errors(), output_errors(output):
        if packed:
            config = pack.Config(packed, output, shuffle=0, samples_per_shard=3, lease_timeout=timeout)
            pack.run(config)
            return
        run.run(
            Config(
                dataset,
                output,
                data_dir=data,
                batch_size=3,
                num_threads=2,
                samples_per_shard=3,
                lease_timeout=timeout,
                **{**TOY, **options},
            )
        )


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.truncate"}


def turn_to(hub: str, output: Path) -> None:
    """Turn this process to a Hub, as the fixture `hub` does with that of the tests."""
    constants, config = huggingface_hub.constants, push.Config
    constants.ENDPOINT = hub
    constants.HUGGINGFACE_CO_URL_TEMPLATE = hub + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    constants.HF_HUB_CACHE = str(output.with_name("cache"))
    os.environ["HF_TOKEN"] = "hf_owner"
    backoff.cut_short, push_loop.POLL, follow.RETRY = hurried, 0.02, 0.05
    push.Config = lambda *a, **k: config(*a, **{**k, "every": 0.0})  # type: ignore[assignment, misc]


def die_at_change(output: Path, number: int) -> None:
    """End this process as `kill -9` does, just before the n-th call that changes the folder, or syncs it, in whichever thread."""
    left = itertools.count(number - 1, -1)

    def count() -> None:
        if next(left) == 0:
            os._exit(DEAD)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            path = str(arguments[0])
            # rmtree names files within their folder.
            if path.startswith(str(output)) or not os.path.isabs(path):
                count()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any) -> Any:
            count()
            return call(*arguments)

        return counting

    sys.addaudithook(hook)
    os.fsync = counted(os.fsync)
    TarWriter.flush = counted(TarWriter.flush)  # type: ignore[method-assign]
