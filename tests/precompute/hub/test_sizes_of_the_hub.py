"""A dataset of others that lies on the Hub: how much of a unit was read is told by what the listing says of its files."""

from pathlib import Path

import datasets
import pytest

from precompute.input.open_records import open_records
from precompute.input.records import SourceOptions
from tests.support.loopback_hub import Blob, LoopbackHub, Repo
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

REPO = "owner/photographs"
UNITS, ROWS = 3, 8


def test_the_share_that_was_read_costs_no_request(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {}
    for unit in range(UNITS):
        members = []
        for row in range(ROWS):
            members += [(f"{unit}{row}.jpg", jpeg(row, (512, 512))), (f"{unit}{row}.txt", b"a picture")]
        write_tar(path := tmp_path / f"{unit}.tar", members)
        files[path.name] = Blob(path.read_bytes(), True)
    hub.repos[REPO] = Repo()
    hub.repos[REPO].commit("main", files, "first")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    source = SourceOptions(REPO, image_column="jpg", caption_column="txt")
    records = open_records(source)
    asked = [request for request in hub.requests if "resolve" not in request[1]]
    shares = [record.share or 0 for record in records.rows(records.units[0])]
    assert len(shares) == ROWS and shares == sorted(shares) and 0 < shares[0] < 0.3 and shares[-1] > 0.8
    assert [request for request in hub.requests if "resolve" not in request[1]] == asked
