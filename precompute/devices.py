"""Which device is this process's, which process it is, and how a tensor gets to the device.

A process needs no process group: all it has to know of the others of its launch stands in the environment.
"""

import os

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
    return device


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Without waiting, and by way of pinned memory: a copy of other memory may wait for all that the device has to do."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
