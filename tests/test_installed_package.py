"""A package of somebody else adds a dataset and encoders by entry points; pip installs it, and our commands know them."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.launching import ROOT, environment

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "theirs"
version = "1.0"

[project.entry-points."latentmill.builders"]
squares = "theirs.squares"

[project.entry-points."latentmill.image_encoders"]
theirs = "theirs.encoders:open_image"

[project.entry-points."latentmill.text_encoders"]
theirs = "theirs.encoders:open_text"

[tool.setuptools]
packages = ["theirs"]
"""
SQUARES = '''
import io
from typing import ClassVar

from PIL import Image

from builders.core.base import ImageCaptionBuilder
from builders.core.record import SourceRow
from builders.core.config import ImageCaptionConfig


class Squares(ImageCaptionBuilder):
    """Squares of one colour, and one row that has no picture."""

    BUILDER_CONFIGS: ClassVar = [ImageCaptionConfig(name="default", version=ImageCaptionBuilder.VERSION)]

    def _shards(self, dl_manager):
        return {"train": ["reds", "greens"]}

    def _rows(self, shard):
        for number in range(3):
            file = io.BytesIO()
            Image.new("RGB", (256, 256), (80 * number, 100, 200)).save(file, "PNG")
            yield SourceRow(f"{shard}-{number}", file.getvalue(), f"A square of the {shard}, number {number}", shard)
        yield SourceRow(f"{shard}-gone", None, "A square that is not there", shard)
'''
ENCODERS = """
from precompute.encode.image import ImageEncoder
from precompute.encode.toy import ToyTokenizer, ToyVAE, toy_text_model


class Negative(ImageEncoder):
    def _encode(self, model, pixels):
        mean, std = super()._encode(model, pixels)
        return -mean, std


def open_image(name, device, dtype):
    return Negative(ToyVAE().to(dtype), {"model": f"theirs:{name}"}, device, dtype)


def open_text(name):
    return toy_text_model(), ToyTokenizer()
"""
SCRIPT = """
import sys
from builders import load_dataset, names
from precompute.run import main

assert "squares" in names()
rows = load_dataset("builders/squares", split="train", cache_dir="cache")
stream = load_dataset("builders/squares", split="train", streaming=True)
assert rows["key"] == [row["key"] for row in stream] == [f"{s}-{n}" for s in ("reds", "greens") for n in range(3)]
sys.argv = ["run.py", "builders/squares", "--output", "out", "--posterior", "mode", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed the package."""
    source, target = tmp_path_factory.mktemp("theirs"), tmp_path_factory.mktemp("site")
    (source / "theirs").mkdir()
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "theirs/__init__.py").touch()
    (source / "theirs/squares.py").write_text(SQUARES)
    (source / "theirs/encoders.py").write_text(ENCODERS)
    install = ["install", "-q", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(source)], check=True)
    return target


def run(site: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    paths = {**environment(), "PYTHONPATH": f"{ROOT}:{site}"}
    command = [sys.executable, "-c", SCRIPT, *flags]
    return subprocess.run(command, cwd=folder, env=paths, capture_output=True, text=True)


def test_a_package_brings_a_dataset_and_encoders(site: Path, tmp_path: Path) -> None:
    theirs = ["--vae", "theirs:any", "--text-encoder", "theirs:any?length=20"]
    done = run(site, tmp_path, *theirs)
    assert done.returncode == 0, done.stderr
    assert "missing_image" in done.stdout
    arrays = {}
    for path in sorted(tmp_path.glob("out/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".npy"):
                    arrays[member.name] = np.load(io.BytesIO(tar.extractfile(member).read()))  # type: ignore[union-attr]
    latents = [name for name in arrays if "latents_256" in name]
    assert latents == [f"{s}-{n}.latents_256.npy" for s in ("reds", "greens") for n in range(3)]
    assert arrays["reds-0.caption_latents.npy"].shape == (20, 64)
    # The negative of the toy's: mean red, which is 0 of 255, is 1 instead of -1, shifted and scaled.
    assert np.allclose(arrays[latents[0]][0], (1 - 0.25) * 2, atol=0.01)


def test_an_encoder_of_a_package_that_is_not_there_is_told(site: Path, tmp_path: Path) -> None:
    done = run(site, tmp_path, "--vae", "nobodys:any", "--text-encoder", "toy")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "--vae nobodys:any" in done.stderr
