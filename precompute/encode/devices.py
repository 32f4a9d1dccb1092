"""Which device is this process's, which process it is, and how a tensor gets to the device.

A process needs no process group: all it has to know of the others of its launch stands in the environment.
"""

import contextlib
import os
import time

import torch

# Whoever starts processes says so in words of its own: accelerate and torchrun, Slurm's srun, Open MPI and Hydra.
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
LOCAL_WORLD_SIZES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def _first(names: tuple[str, ...], default: int) -> int:
    return next((int(value) for name in names if (value := os.environ.get(name, "")).isdigit()), default)


def is_main() -> bool:
    """Whether this process speaks for its launch, and pushes."""
    return _first(RANKS, 0) == 0


def processes_here() -> int:
    """Processes of the launch on this machine, where the launcher says so."""
    return _first(LOCAL_WORLD_SIZES, 1)


def pick_device() -> torch.device:
    """This process's accelerator, by its rank on this machine; the CPU where there is none, or under `accelerate launch
    --cpu`."""
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    if use_cpu or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    device = torch.device(kind.type, _first(LOCAL_RANKS, 0) % torch.accelerator.device_count())
    torch.accelerator.set_device_index(device.index)
    torch.backends.cudnn.deterministic = True  # the same batch gives the same bytes, on any day
    torch.backends.cudnn.allow_tf32 = False  # float32 is what is asked for, and what a retry needs
    return device


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy without waiting, by way of pinned memory: a copy of other memory may wait for all that the device has to do."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class DeviceClock:
    """busy: seconds in which the device had work; awaited: seconds in which the host waited for it.

    On a GPU by its own events; where the host computes, or its calls wait, by the clock of the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reset()
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        self.busy = self.awaited = 0.0
        self.last: torch.cuda.Event | None = None  # behind the batch before

    def count(self, busy: float, awaited: float, last: torch.cuda.Event | None = None) -> None:
        """Add a batch. last: the event behind it."""
        self.busy += busy
        self.awaited += awaited
        self.last = last

    def start(self) -> "Span":
        """Start the clock of one batch: `begin` before the images, `end` behind the last work, `wait` until all is done."""
        return Span(self)

    def beside(self) -> contextlib.AbstractContextManager[object]:
        """Work that need not wait for what the device has to do already."""
        return contextlib.nullcontext() if self.side is None else torch.cuda.stream(self.side)


class Span:
    """One batch's time on the device."""

    def __init__(self, clock: DeviceClock) -> None:
        self._clock, self._started = clock, time.monotonic()
        self._seconds = 0.0
        self._events: list[torch.cuda.Event] = []

    def begin(self) -> None:
        if self._clock.side is not None:
            self._record(None)

    def end(self) -> None:
        if self._clock.side is not None:
            self._record(None)
            self._record(self._clock.side)
        self._seconds = time.monotonic() - self._started

    def wait(self) -> None:
        """Wait until the device is done with all that was launched. Once."""
        started = time.monotonic()
        if self._events:
            for event in self._events:
                event.synchronize()
        elif self._clock.device.type != "cpu":
            torch.accelerator.synchronize(self._clock.device)
        waited = time.monotonic() - started
        if len(self._events) == 3:
            begin, *ends = self._events
            last = max(ends, key=begin.elapsed_time)
            spent = begin.elapsed_time(last)
            if self._clock.last is not None:  # two batches may overlap, on two streams
                spent = min(spent, self._clock.last.elapsed_time(last))
            self._clock.count(max(spent, 0.0) / 1000, waited, last)
        else:
            self._clock.count(self._seconds + waited, self._seconds + waited)

    def _record(self, stream: torch.cuda.Stream | None) -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        self._events.append(event)
