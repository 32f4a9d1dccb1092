"""README's story of shards that grow, run as it stands there: make, add an encoder, add recaptions, select, pack and push."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from loader import make_loader
from loader.format import MANIFEST, Manifest
from precompute import run
from tests.precompute.hub.test_push import REPO
from tests.support.launching import ROOT
from tests.support.loopback_hub import LoopbackHub

LAUNCH = re.compile(r"(?:accelerate launch --cpu|python) precompute/(\w+)\.py (.*)")


def story() -> list[tuple[str, list[str]]]:
    """Verb and arguments of each of its commands."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.partition("### 6. It grows")[2].partition("\n    # make; add")[2].partition("\n\n")[0]
    commands = [LAUNCH.fullmatch(line.strip()) for line in block.splitlines()[1:]]
    return [(command[1], shlex.split(command[2])) for command in commands if command]


def test_the_story_runs_as_it_is_told(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = story()
    assert [verb for verb, _ in commands] == ["run", "run", "run", "choose", "pack", "push"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "stop_on_sigterm", lambda: None)
    told = {}
    for number, (verb, arguments) in enumerate(commands):
        if "--captions" in arguments:
            keys = [
                row["key"]
                for path in Path("latents/grown").glob("*.parquet")
                for row in pq.read_table(path).to_pylist()
            ]
            rows = [{"key": key, "caption": f"new {key}"} for key in keys]
            Path("recaptions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        mine = [REPO if word == "USER/grown-latents" else word for word in arguments]
        monkeypatch.setattr("sys.argv", [f"{verb}.py", *mine])
        importlib.import_module(f"precompute.{verb}").main()
        told[number] = capsys.readouterr().out
    assert "0 groups of nearly the same picture" in told[3]
    kept = pq.read_table("kept.parquet")["key"].to_pylist()
    packed = Manifest.from_json((tmp_path / "latents/packed" / MANIFEST).read_bytes())
    assert packed.splits["train"].samples == len(kept) > 5
    there = Manifest.from_json(hub.repos[REPO].files()[MANIFEST].data)
    assert there == packed
    options: dict[str, Any] = {
        "captions": {"llava": 1},
        "extras": ["key", "caption"],
        "where": "width >= 512",
    }
    batches = list(make_loader(f"hf://datasets/{REPO}", 1, **options))
    assert sorted(key for batch in batches for key in batch["key"]) == sorted(kept)
    assert all(batch["caption"] == [f"new {batch['key'][0]}"] for batch in batches)
    assert batches[0].keys() >= {"caption_latents", "caption_latents_t5"}
