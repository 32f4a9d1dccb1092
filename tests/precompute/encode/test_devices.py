"""A process knows its place from its launcher's words, and takes its own device."""

import pytest
import torch

from precompute.encode import devices

LAUNCHERS = {
    "torchrun": {"RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    "srun": {"SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
    "torchrun under srun": {
        "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    },
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
}  # fmt: skip


@pytest.fixture
def four_devices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine with four GPUs; which index was set."""
    for name in (*devices.RANKS, *devices.LOCAL_RANKS, *devices.LOCAL_WORLD_SIZES, "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    return chosen


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_process_of_a_launch_takes_its_own_device(
    launcher: str, four_devices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    assert devices.pick_device() == torch.device("cuda", 1)
    assert four_devices == [1]
    assert not devices.is_main()
    assert devices.processes_here() == (1 if launcher == "srun" else 4)


def test_a_process_alone_speaks_for_itself(four_devices: list[int]) -> None:
    assert devices.pick_device() == torch.device("cuda", 0)
    assert devices.is_main() and devices.processes_here() == 1


def test_accelerate_launch_cpu_means_it(four_devices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert devices.pick_device() == torch.device("cpu") and not four_devices
