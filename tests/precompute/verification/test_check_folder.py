"""Markers against each other and their plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from precompute.shards.markers import manifest_of, marker_paths, read_marker
from precompute.verification.check_folder import check_markers
from tests.support.finished_folder import write_shards


@pytest.mark.parametrize(("unit", "is_told"), [(2, False), (3, True), (4, True)])
def test_a_unit_beyond_the_plan_is_told(tmp_path: Path, unit: int, is_told: bool) -> None:
    folder = write_shards(tmp_path / "a", units=3)
    markers = {path.stem: read_marker(path) for path in marker_paths(folder)}
    markers[f"train-{unit:05d}"] = replace(markers["train-00002"], unit=unit)
    expected = manifest_of(markers["train-00000"].recipe, markers["train-00000"].fields, markers.values())
    found = [
        finding
        for finding in check_markers(markers, expected, expected, set())
        if "no such unit" in finding.what
    ]
    assert [finding.shard for finding in found] == ([f"train-{unit:05d}"] if is_told else [])
