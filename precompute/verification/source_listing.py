"""What lies at a source of the user's own, by a listing of its own: not by the reader that wrote the shards, which may have missed files.

Of `builders/folder` and `builders/webdataset`, whole: each file of the folder, and each member of its tars as Python's tarfile lists them,
is the source of a row, a caption beside one, a table of captions, or among those that the markers count as left out.
"""

import os
import re
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from builders.folder import SPLITS
from loader.format import Manifest
from precompute.commands import launched
from precompute.verification.check_folder import Finding

LISTED = ("builders/folder", "builders/webdataset")
_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_CAPTIONS = (".txt", ".caption")


def check_listing(
    folder: Path, dataset: str, manifest: Manifest, sources: Collection[str]
) -> Iterator[Finding]:
    """A finding for each kind of file that no row and no count accounts for. sources: of all rows of all splits."""
    known = {name: split for split, names in SPLITS.items() for name in names}
    there = {known[entry.name] for entry in os.scandir(folder) if entry.name in known}
    splits = manifest.splits.values()
    is_whole = all(split.complete and split.plan["limit"] is None for split in splits)
    if not is_whole or not there <= manifest.splits.keys():
        return  # the rest is nobody's to account for
    left_out = sum((Counter(split.left_out) for split in splits), Counter[str]())
    files = list(_files(folder))
    if dataset == "builders/folder":
        stems = {_stem(source) for source in sources}
        strays = [path for path in files if path not in sources and not _is_caption(path, stems)]
        yield from _compare(folder.name, strays, left_out.total() - left_out["second_caption_file"])
        return
    inside = {source[: at.start()] for source in sources for at in re.finditer("/", source)}
    loose = [path for path in files if path not in inside and path not in sources]
    yield from _compare(folder.name, loose, left_out["no_archive"])
    # Else an archive breaks off, and nobody knows what it held.
    if not any(path in sources for path in files):
        samples = {*sources, *(_composed(source) for source in sources if not source.isascii())}
        members = [name for path in files if path in inside for name in _strays_of(folder, path, samples)]
        yield from _compare(f"the tars of {folder.name}", members, left_out["hidden"])


def _compare(where: str, strays: list[str], counted: int) -> Iterator[Finding]:
    if len(strays) != counted:
        names = ", ".join(sorted(strays)[:3]) or "none"
        what = f"{len(strays):,} files of it are no row's ({names}), {counted:,} are counted as left out"
        cure = f"the source has changed, or a file was passed by: run `{launched()}` again, with another --output"
        yield Finding(where, "", what, cure)


def _files(folder: Path) -> Iterator[str]:
    """All files, and links to nowhere; no pipes. Links to folders are followed, but not back to a folder that they lie in."""
    for root, folders, names in os.walk(folder, followlinks=True):
        here = os.path.realpath(root) + os.sep
        real = {name: os.path.realpath(os.path.join(root, name)) + os.sep for name in folders}
        folders[:] = [name for name in folders if not here.startswith(real[name])]
        paths = [os.path.join(root, name) for name in names]
        files = (path for path in paths if os.path.isfile(path) or not os.path.exists(path))
        yield from (_text(os.path.relpath(path, folder)) for path in files)


def _is_caption(path: str, stems: Collection[str]) -> bool:
    """Whether it is a caption file beside a row's picture (cat.txt, cat.jpg.txt), or a table of captions."""
    stem, suffix = _stem(path), os.path.splitext(path)[1].lower()
    if suffix in _CAPTIONS:
        return stem in stems or _stem(stem) in stems
    return os.path.basename(path) in _TABLES


def _strays_of(folder: Path, archive: str, samples: Collection[str]) -> Iterator[str]:
    """Members of no sample that is a row, whose names may be composed otherwise."""
    with tarfile.open(folder / archive) as tar:
        for member in tar:
            name = f"{archive}/{_text(member.name.removeprefix('./'))}"
            parent, slash, base = name.rpartition("/")
            sample = parent + slash + base.partition(".")[0]
            if not member.isdir() and sample not in samples and _composed(sample) not in samples:
                yield name


def _stem(path: str) -> str:
    return _composed(os.path.splitext(path)[0])


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _text(name: str) -> str:
    """Write it as the sidecars have it."""
    return name.encode("utf-8", "replace").decode()
