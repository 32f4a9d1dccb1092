"""What a process knows of all units holds until a look shows another thing."""

from pathlib import Path

from precompute.input.units import Unit
from precompute.runtime.leases import Leases
from precompute.shards.output_folder import OutputFolder


def test_a_unit_whose_marker_is_taken_back_is_dealt_again(tmp_path: Path) -> None:
    """--retry-rejected of another process does so: whoever had seen the unit finished must not wait for ever."""
    output = OutputFolder(tmp_path)
    leases = Leases(output, [Unit(index, index) for index in range(5)])
    dealt = []
    while (lease := leases.claim()) is not None:
        dealt.append(lease.unit.index)
        output.put(f"train-{lease.unit.index:05d}.json", b"{}")
        leases.release(lease)
    assert dealt == [0, 1, 2, 3, 4] and leases.board.is_complete
    output.delete("train-00002.json")
    lease = leases.claim()
    assert lease is not None and lease.unit.index == 2
    leases.close()
