"""A cache of the Hub as `hf download` leaves it: refs, blobs, and snapshots of links to them. The Hub itself cannot be reached."""

import hashlib
import os
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, repository: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the one snapshot of a repository, which is to be filled; from now on it is all that can be had."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def link_to_blobs(snapshot: Path) -> None:
    """Move the files of a snapshot to blobs/, named by their contents, and leave links to them."""
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(exist_ok=True)
    for path in [path for path in snapshot.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.replace(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
