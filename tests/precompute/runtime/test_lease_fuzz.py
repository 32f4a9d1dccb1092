"""Leases with random damage: they end no run, and hold a unit up no longer than a process that fell silent.

LATENTMILL_FUZZ=2000 tries so many mutations.
"""

import json
import os
import random
from pathlib import Path

from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.runtime.owner import this_process
from precompute.shards.destination import WORK
from precompute.shards.output_folder import OutputFolder
from tests.support.mutations import mutated, mutated_json
from tests.support.waiting import Clock

MUTATIONS = int(os.environ.get("LATENTMILL_FUZZ", "2000"))


def test_a_mutated_lease(tmp_path: Path, clock: Clock) -> None:
    """It is a living process's: each is waited for, or seen to be dead; then its unit is worked on, and nothing is left."""
    whole, rng, waited = {"token": "x", **this_process()}, random.Random(5), 0
    for seed in range(MUTATIONS):
        data = mutated_json(whole, rng) if seed % 2 else mutated(json.dumps(whole).encode(), seed)
        leases = Leases(OutputFolder(tmp_path, "train"), [Unit(0, 0)], timeout=60)
        (tmp_path / WORK).mkdir(exist_ok=True)
        (tmp_path / WORK / "train-00000.lease-1").write_bytes(data)
        if (lease := leases.claim()) is None:
            waited += 1
            clock.advance(61)
            lease = leases.claim()
        assert lease is not None and lease.turn == 2, data
        leases.close()
        assert not (tmp_path / WORK).exists()
    assert 0 < waited < MUTATIONS, "of some it can be told at once that their process is gone"
