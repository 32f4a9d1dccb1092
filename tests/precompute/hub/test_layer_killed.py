"""A layer beside a base on the Hub, killed at random instants with two processes at it: the same bytes, nothing twice."""

import random
from pathlib import Path
from typing import Any

from precompute import push, verify
from tests.precompute.hub.test_push import REPO
from tests.support.launching import leftovers, tars
from tests.support.loopback_hub import LoopbackHub
from tests.support.processes import finish
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg


def test_killed_beside_another_process_it_comes_out_the_same(
    hub: LoopbackHub, tmp_path: Path, start: Any
) -> None:
    raw, base = tmp_path / "raw", tmp_path / "base"
    for unit in range(3):
        rows = [(f"{unit}{row}", jpeg(row)) for row in range(4)]
        members = [
            part for key, image in rows for part in ((f"{key}.jpg", image), (f"{key}.txt", key.encode()))
        ]
        write_tar(raw / f"{unit:05d}.tar", members)
    finish(start, base, raw)
    push.push(push.Config(base, REPO))
    there = {
        "beside": f"hf://datasets/{REPO}",
        "text_encoder": ("second=toy",),
        "resolutions": (32,),
        "timeout": 1.0,
    }
    options: dict[str, Any] = {**there, "hub": hub.url}
    finish(start, tmp_path / "undisturbed", raw, **options)
    for number in random.SystemRandom().sample(range(2, 40), 2):
        print(f"at change {number}")
        output = tmp_path / f"killed-{number}"
        output.mkdir()
        for process in [start(output, raw, die_at=number, **options), start(output, raw, **options)]:
            process.join(timeout=200)
        finish(start, output, raw, **options)
        assert tars(output) == tars(tmp_path / "undisturbed") and not leftovers(output)
        config = verify.Config(str(output), beside=f"hf://datasets/{REPO}")
        assert not verify.verify(config).findings
