"""README's middle step, typed as it stands there: a folder of photographs, models from the Hub's cache or from a folder."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from loader import make_loader
from tests.support.fork_server import ForkServer
from tests.support.forked import MODULES
from tests.support.hub_cache import cached, link_to_blobs
from tests.support.launching import ROOT
from tests.support.tiny_models import save_clip_of_openai, save_halving

README = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own photographs")[2]
TYPED = re.findall(r"^    python (precompute/\w+\.py .*)$", README.partition("\n## ")[0], re.M)
CAPTIONS = {
    "astronaut.png": "An astronaut in an orange suit",
    "coffee.png": "A cup of coffee on a wooden table",
    "chelsea.png": "The face of a tabby cat",
    "rocket.jpg": "A rocket on its launch pad",
}


def test_readmes_own_photographs_work_as_they_are_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [line.split(".py ")[0] for line in TYPED] == [
        f"precompute/{v}" for v in ("run", "verify", "preview")
    ]
    (tmp_path / "precompute").symlink_to(ROOT / "precompute")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, caption in CAPTIONS.items():
        (photos / name).write_bytes((Path(data.__file__).parent / name).read_bytes())
        (photos / name).with_suffix(".txt").write_text(caption)
    vae = cached(tmp_path / "hub", "madebyollin/taesd", monkeypatch)
    clip = cached(tmp_path / "hub", "openai/clip-vit-base-patch32", monkeypatch)
    for snapshot in (save_halving(vae), save_clip_of_openai(clip)):
        link_to_blobs(snapshot)
    save_halving(tmp_path / "taesd")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}

    with ForkServer([*MODULES.values()], environment) as server:

        def typed(line: str, code: int = 0) -> str:
            done = server.run(*shlex.split(line), cwd=tmp_path, environment=environment)
            assert done.returncode == code, f"{line}\n{done.stdout}{done.stderr}"
            return done.stdout + done.stderr

        run, verify, preview = TYPED
        typed(run)
        assert "latents/photos: whole. 4 written + 0 rejected = 4 rows" in typed(verify)
        typed(preview)
        report = (tmp_path / "latents" / "photos" / "report.html").read_text(encoding="utf-8")
        assert all(caption in report for caption in CAPTIONS.values())
        # The same with the autoencoder in a folder: what is stored is the same, and the folder is asked for by its flag.
        run, verify = (line.replace("latents/", "latents/folder-") for line in (run, verify))
        typed(run.replace("madebyollin/taesd", "taesd"))
        assert "--vae" in typed(verify, code=1)
        assert "latents/folder-photos: whole. 4 written" in typed(f"{verify} --vae taesd")
    for name in ("photos", "folder-photos"):
        assert str(tmp_path) not in (tmp_path / "latents" / name / "manifest.json").read_text()
    both = [tmp_path / "latents" / name for name in ("photos", "folder-photos")]
    stored = [
        next(iter(make_loader(output, len(CAPTIONS), shuffle=False)))["image_latents"] for output in both
    ]
    assert np.array_equal(*stored)
