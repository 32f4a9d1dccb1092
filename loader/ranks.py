"""Which rank this process is, of how many: asked again whenever iteration begins, for a process group may come later than the loader."""

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch.distributed
from torch.utils.data import get_worker_info

log = logging.getLogger("loader")

# (rank, world size) in the words of whoever starts processes: torchrun and accelerate, Slurm's srun, Open MPI, Hydra.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("SLURM_PROCID", "SLURM_NTASKS"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
LOCAL_SIZES = (
    "LOCAL_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
    "SLURM_NTASKS_PER_NODE",
)
NODE_RANKS = ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID")
CURE = "initialise torch.distributed before iterating, set RANK and WORLD_SIZE, or give rank= and world_size="


@dataclass(frozen=True)
class Rank:
    """number: of this process, None where nothing says it; world_size: processes of the launch; told_by: where it stands."""

    number: int | None
    world_size: int
    told_by: str

    def __post_init__(self) -> None:
        if self.world_size < 1 or (self.number is not None and not 0 <= self.number < self.world_size):
            raise ValueError(
                f"rank={self.number} is not below world_size={self.world_size} ({self.told_by}); {CURE}"
            )

    @property
    def known(self) -> int:
        """The rank. Raises ValueError where it is not known: batches of a guessed one would be read twice, or never."""
        if self.number is None:
            raise ValueError(
                f"WORLD_SIZE={self.world_size}, but nothing says which rank this process is; {CURE}"
            )
        return self.number


def tell_doubt(rank: Rank) -> Rank:
    """The rank, with a line in the log if it may not be meant: a batch script has Slurm's words though no srun started it."""
    by_slurm = rank.told_by.startswith("SLURM") and "SLURM_STEP_ID" not in os.environ
    if by_slurm and rank.number == 0 and rank.world_size > 1:
        log.warning(
            "this is rank 0 of %d by %s, and no step of srun; if it is the only process, give rank=0, world_size=1",
            *(rank.world_size, rank.told_by),
        )
    return rank


def given_rank(rank: int | None, world_size: int | None) -> Rank | None:
    """What the arguments say; None where they say nothing. Raises ValueError for one without the other."""
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise ValueError(f"rank={rank}, world_size={world_size}: give both or neither")
    return Rank(rank, world_size, "rank=, world_size=")


def present_rank() -> Rank:
    """What torch.distributed says, else the launcher's environment, else the only process there is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Rank(torch.distributed.get_rank(), torch.distributed.get_world_size(), "torch.distributed")
    for rank_name, size_name in LAUNCHERS:
        rank, size = _number(rank_name), _number(size_name)
        if rank is not None and size is not None:
            return Rank(rank, size, f"{rank_name}, {size_name}")
    if (size := _number("WORLD_SIZE")) is not None:
        return Rank(_by_place(size), size, "WORLD_SIZE, LOCAL_RANK")
    if rank := _number("RANK"):
        raise ValueError(f"RANK={rank} without WORLD_SIZE; {CURE}")
    return Rank(0, 1, "no launcher")


class RankFinder:
    """Finds which rank this process is, anew each time, unless it is given. adopted: the one that batches are dealt by.

    Raises ValueError for a rank without a world size, and as `present_rank` does.
    """

    def __init__(self, rank: int | None, world_size: int | None) -> None:
        self._given, self._pickled = given_rank(rank, world_size), False
        self.adopted = self._given or tell_doubt(present_rank())

    def find(self) -> Rank:
        """The rank, were iteration to begin now. In a worker, a new process that knows of no process group, its parent's."""
        if self._given is not None:
            return self._given
        return self.adopted if self._pickled and get_worker_info() is not None else present_rank()

    def adopt(self, rank: Rank) -> None:
        """Deal batches by this rank from now on."""
        self.adopted = rank

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "adopted": self.find(), "_pickled": True}


def processes_here(world_size: int) -> int:
    """Ranks on this machine; all of them, where the launcher does not say."""
    return next((min(n, world_size) for name in LOCAL_SIZES if (n := _number(name))), world_size)


def _by_place(world_size: int) -> int | None:
    """The rank by the node's and the one on it, as Lightning's launcher leaves it; None where that is not enough."""
    local = next((n for name in LOCAL_RANKS if (n := _number(name)) is not None), None)
    node = next((n for name in NODE_RANKS if (n := _number(name)) is not None), 0)
    if world_size == 1:
        return 0
    if local is None or not node:
        return local
    each = _number("LOCAL_WORLD_SIZE")
    return None if each is None else node * each + local


def _number(name: str) -> int | None:
    value = os.environ.get(name, "").strip()
    return int(value) if value.isdigit() else None
