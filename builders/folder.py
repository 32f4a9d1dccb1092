"""Your own folder of images: captions in text files beside them, or in one metadata table, as `imagefolder` has it.

load_dataset("builders/folder", data_dir="photos")

photos/cat.jpg  photos/cat.txt (or .caption)               one caption a file
photos/metadata.csv (or .jsonl, .parquet)                  columns file_name (relative to the table) and caption, text or prompt;
                                                           several rows of one file_name are several captions; one table a
                                                           folder
photos/train/...  photos/validation/...  photos/test/...   the splits; without such sub-folders all is `train`
"""

import functools
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from builders.core.account import Left
from builders.core.base import ImageCaptionBuilder, make_key
from builders.core.config import ImageCaptionConfig
from builders.core.errors import ConfigError, MissingSourceError
from builders.core.listing import walk_files
from builders.core.log import logger
from builders.core.record import SourceRow
from builders.core.tables import read_table
from builders.core.text_file import check_encoding, decode_text

IMAGES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jfif", ".jpe", ".apng", ".avif", ".heic", ".heif", ".jxl", ".jp2", ".svg", ".img"),
)
_SIDECARS = (".txt", ".caption")
_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_CAPTION_COLUMNS = ("caption", "text", "prompt")
# The sub-folder names that imagefolder knows.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_HIDDEN = (".", "__MACOSX")
FILES_PER_SHARD = 1000
_MIN_SHARDS = 4  # so that a small folder can be shared out too


class _File(NamedTuple):
    """One row: an image and its caption file, each a path relative to data_dir, or None."""

    key: str
    image: str | None
    sidecar: str | None


@dataclass
class FolderConfig(ImageCaptionConfig):
    """caption_column      the metadata table's caption column; default: the first there is of caption, text, prompt
    caption_encoding    of caption files and tables without a byte order mark: "gbk", "cp1252", ...; default UTF-8
    """

    caption_column: str | None = None
    caption_encoding: str | None = None

    def check(self) -> None:
        super().check()
        check_encoding("caption_encoding", self.caption_encoding)


class Folder(ImageCaptionBuilder):
    DESCRIPTION = "A local folder of images with captions in sidecar files or in a metadata table."
    BUILDER_CONFIG_CLASS = FolderConfig
    BUILDER_CONFIGS: ClassVar = [FolderConfig(name="default", version=ImageCaptionBuilder.VERSION)]

    def _shards(self, dl_manager: Any) -> dict[str, list[tuple[_File, ...]]]:
        root = self.config.data_dir
        if root is None or not os.path.isdir(root):
            raise MissingSourceError(
                f"builders/folder: data_dir={root!r} is not a local folder; give the folder of your images as data_dir, "
                "on the command line --data-dir"
            )
        tops = {
            name: split
            for split, names in SPLITS.items()
            for name in names
            if os.path.isdir(os.path.join(root, name))
        }
        by_split: dict[str, list[_File]] = {split: [] for split in (SPLITS if tops else ("train",))}
        files, left = _list_files(root, self._captions())
        outside = left["outside_of_splits"] = list[str]()
        for file in files:
            split = tops.get(_top(file.image or file.sidecar or "")) if tops else "train"
            if split is None:
                paths = (file.image, file.sidecar)
                outside += [path for path in paths if path and os.path.lexists(os.path.join(root, path))]
            else:
                by_split[split].append(file)
        if outside:
            logger.warning(
                f"folder: {len(outside):,} files outside of the folders {', '.join(tops)} are left out"
            )
        if not any(file.image for files in by_split.values() for file in files):
            raise MissingSourceError(
                f"builders/folder: no images in data_dir={root!r}. Looked for *{', *'.join(IMAGES)}, with captions in "
                f"*{', *'.join(_SIDECARS)} beside them or in {', '.join(_TABLES)}"
            )
        self._by_split = {split: _ranges(files) for split, files in by_split.items() if files}
        first = next(iter(self._by_split))
        self._left = {
            split: {
                reason: Left.of([path for path in paths if tops.get(_top(path), first) == split])
                for reason, paths in left.items()
            }
            for split in self._by_split
        }
        return self._by_split

    def files(self, shard: tuple[_File, ...]) -> list[str]:
        """Files that the rows of a shard come from, tables of captions among them."""
        root = self.config.data_dir
        paths = [path for file in shard for path in (file.image, file.sidecar) if path]
        folders = {""}
        for path in paths:
            while (path := path.rpartition("/")[0]) not in folders:
                folders.add(path)
        tables = [f"{folder}/{name}".lstrip("/") for folder in sorted(folders) for name in _TABLES]
        tables = [table for table in tables if os.path.isfile(os.path.join(root, table))]
        return [os.path.join(root, path) for path in (*paths, *tables)]

    def left_out(self, split: str, shard: tuple[_File, ...]) -> Mapping[str, Left]:
        return self._left[split] if shard == self._by_split[split][0] else {}

    def _rows(self, shard: tuple[_File, ...]) -> Iterator[SourceRow]:
        root, table = self.config.data_dir, self._captions()
        for number, file in enumerate(shard, 1):
            self.share_read = number / len(shard)
            captions, reject = list(table.get(file.image or "", ())), None
            if file.sidecar and not captions:
                try:
                    with open(os.path.join(root, file.sidecar), "rb") as text:
                        captions = [decode_text(text.read(), self.config.caption_encoding)]
                except OSError:
                    reject = "unreadable"
                except ValueError:
                    reject = "unreadable_text"
            try:
                image = _read_image(root, file.image)
            except OSError:
                image, reject = None, "unreadable"
            source = file.image or file.sidecar or ""
            yield SourceRow(file.key, image, captions or None, source, reject=reject)

    def _captions(self) -> dict[str, list[object]]:
        """Captions of the metadata tables by image path, relative to data_dir."""
        config = self.config
        return _read_tables(
            config.data_dir, config.caption_column, config.caption_encoding, config.data_fingerprint
        )


def _read_image(root: str, path: str | None) -> bytes | None:
    """None where it is not there, or lies outside of the folder: a table is not to point at the rest of the disk.

    Raises OSError where it is there, and the disk or its permissions do not let it be read.
    """
    if path is None or path.startswith(("/", "../")):
        return None
    try:
        with open(os.path.join(root, path), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None


def _top(path: str) -> str:
    return path.partition("/")[0]


def _is_hidden(path: str) -> bool:
    return path.startswith(_HIDDEN) or "/." in path or "/__MACOSX/" in path


def _list_files(
    root: str, listed: Mapping[str, Collection[object]]
) -> tuple[list[_File], dict[str, list[str]]]:
    """All images, caption files without an image, and table rows without one, in the order of their paths; and all other files."""
    left: dict[str, list[str]] = {"hidden": [], "not_image_or_caption": [], "second_caption_file": []}
    paths = set(listed)
    for path in walk_files(root):
        if _is_hidden(path):
            left["hidden"].append(path)
        elif path.lower().endswith((*IMAGES, *_SIDECARS)):
            paths.add(path)
        elif path not in paths and path.rpartition("/")[2] not in _TABLES:
            left["not_image_or_caption"].append(path)
    stems: dict[str, list[str]] = {}
    for path in sorted(paths):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in _SIDECARS and stem.lower().endswith(IMAGES):  # cat.jpg.txt
            stem = os.path.splitext(stem)[0]
        stems.setdefault(unicodedata.normalize("NFC", stem), []).append(path)
    files = []
    for found in stems.values():
        sidecars = [path for path in found if path.lower().endswith(_SIDECARS)]
        pictures = [path for path in found if path not in sidecars]
        stem = os.path.splitext((pictures or sidecars)[0])[0]
        used = set[str]()
        if len(pictures) < 2:
            used.update(() if any(listed.get(path) for path in pictures) else sidecars[:1])
            files.append(_File(make_key(stem), next(iter(pictures), None), next(iter(sidecars), None)))
        # Where cat.jpg lies beside cat.png, the suffix goes into the key.
        for path in pictures if len(pictures) > 1 else ():
            own = [name for name in sidecars if os.path.splitext(name)[0] == path] or sidecars[:1]
            used.update(() if listed.get(path) else own[:1])
            files.append(_File(make_key(path), path, own[0] if own else None))
        left["second_caption_file"] += [path for path in sidecars if path not in used]
    return files, left


def _ranges(files: list[_File]) -> list[tuple[_File, ...]]:
    count = max(-(-len(files) // FILES_PER_SHARD), min(_MIN_SHARDS, len(files)))
    return [tuple(files[len(files) * i // count : len(files) * (i + 1) // count]) for i in range(count)]


@functools.lru_cache(maxsize=1)
def _read_tables(
    root: str, column: str | None, encoding: str | None, fingerprint: str | None
) -> dict[str, list[object]]:
    """`fingerprint` is no input; it makes changed files a different call."""
    captions: dict[str, list[object]] = {}
    by_folder: dict[str, list[str]] = {}
    for found in walk_files(root):
        if found.rpartition("/")[2] in _TABLES and not _is_hidden(found):
            by_folder.setdefault(os.path.join(root, found.rpartition("/")[0]), []).append(found)
    for folder, names in by_folder.items():
        tables = [os.path.join(root, name) for name in names]
        if len(tables) > 1:
            raise ConfigError(f"{' and '.join(tables)}: two tables of one folder. Keep the one that is right")
        for path in tables:
            for file_name, texts in _read_captions(path, column, encoding):
                file_name = _as_on_disk(folder, file_name)
                image = os.path.relpath(os.path.join(folder, file_name), root).replace(os.sep, "/")
                captions.setdefault(image, []).extend(texts)
    return captions


def _as_on_disk(folder: str, name: str) -> str:
    """A name out of a table as the disk has it: with the separators of Windows, or composed otherwise, it means the same file."""
    slashed = name.replace("\\", "/")
    names = [unicodedata.normalize(form, text) for text in (name, slashed) for form in ("NFC", "NFD")]
    known = (other for other in [name, slashed, *names] if os.path.lexists(os.path.join(folder, other)))
    return next(known, slashed)


def _read_captions(path: str, column: str | None, encoding: str | None) -> Iterator[tuple[str, list[object]]]:
    """File name and captions of each row; a row of JSON lines may lack a caption, all of them may not."""
    row, has_captions = {}, False
    for row in read_table(path, encoding):
        picked = column or next((name for name in _CAPTION_COLUMNS if name in row), None)
        if "file_name" not in row or (picked not in row and not path.endswith(".jsonl")):
            break
        has_captions |= picked in row
        value = row.get(picked or "")
        yield str(row["file_name"]), [] if value is None else value if isinstance(value, list) else [value]
    else:
        if has_captions or not row:
            return
    raise ConfigError(
        f"{path}: needs the columns file_name and {column or ', '.join(_CAPTION_COLUMNS)}; has {', '.join(row)}. "
        "Name the caption column with caption_column=..."
    )
