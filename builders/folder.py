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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from builders.core.base import ImageCaptionBuilder, Row, logger, make_key
from builders.core.config import ImageCaptionConfig
from builders.core.errors import ConfigError, MissingSourceError
from builders.core.tables import read_table
from builders.core.text_file import check_encoding, decode_text

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_SIDECARS = (".txt", ".caption")
_TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_CAPTION_COLUMNS = ("caption", "text", "prompt")
SPLITS = {  # the sub-folder names that imagefolder knows
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_HIDDEN = (".", "__MACOSX")
_FILES_PER_SHARD = 1000
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
        outside = 0
        for file in _list_files(root, set(self._captions())):
            split = tops.get((file.image or file.sidecar or "").split("/")[0]) if tops else "train"
            if split is None:
                outside += 1
            else:
                by_split[split].append(file)
        if outside:
            logger.warning(f"folder: {outside:,} files outside of the folders {', '.join(tops)} are left out")
        if not any(file.image for files in by_split.values() for file in files):
            raise MissingSourceError(
                f"builders/folder: no images in data_dir={root!r}. Looked for *{', *'.join(IMAGES)}, with captions in "
                f"*{', *'.join(_SIDECARS)} beside them or in {', '.join(_TABLES)}"
            )
        return {split: _ranges(files) for split, files in by_split.items() if files}

    def _rows(self, shard: tuple[_File, ...]) -> Iterator[Row]:
        root, table = self.config.data_dir, self._captions()
        for file in shard:
            captions, reject = list(table.get(file.image or "", ())), None
            if file.sidecar and not captions:
                with open(os.path.join(root, file.sidecar), "rb") as text:
                    data = text.read()
                try:
                    captions = [decode_text(data, self.config.caption_encoding)]
                except ValueError:
                    reject = "unreadable_text"
            source = file.image or file.sidecar or ""
            yield Row(file.key, _read_image(root, file.image), captions or None, source, reject=reject)

    def _captions(self) -> dict[str, list[object]]:
        """Captions of the metadata tables by image path, relative to data_dir."""
        config = self.config
        return _read_tables(
            config.data_dir, config.caption_column, config.caption_encoding, config.data_fingerprint
        )


def _read_image(root: str, path: str | None) -> bytes | None:
    """None where it cannot be read, or lies outside of the folder: a table is not to point at the rest of the disk."""
    if path is None or path.startswith(("/", "../")):
        return None
    try:
        with open(os.path.join(root, path), "rb") as file:
            return file.read()
    except OSError:
        return None


def _list_files(root: str, listed: set[str]) -> list[_File]:
    """All images, caption files without an image, and table rows without one, in the order of their paths."""
    paths = set(listed)
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        paths.update(prefix + name for name in names if not name.startswith((".", "__")))
    stems: dict[str, list[str]] = {}
    for path in sorted(paths):
        stem, suffix = os.path.splitext(path)
        if suffix.lower() in (*IMAGES, *_SIDECARS) or path in listed:
            stems.setdefault(stem, []).append(path)
    files = []
    for stem, found in stems.items():
        sidecar = next((path for path in found if path.lower().endswith(_SIDECARS)), None)
        pictures = [path for path in found if not path.lower().endswith(_SIDECARS)]
        if len(pictures) < 2:
            files.append(_File(make_key(stem), pictures[0] if pictures else None, sidecar))
        else:  # cat.jpg beside cat.png: the suffix goes into the key
            files += [_File(make_key(path), path, sidecar) for path in pictures]
    return files


def _ranges(files: list[_File]) -> list[tuple[_File, ...]]:
    count = max(-(-len(files) // _FILES_PER_SHARD), min(_MIN_SHARDS, len(files)))
    return [tuple(files[len(files) * i // count : len(files) * (i + 1) // count]) for i in range(count)]


@functools.lru_cache(maxsize=1)
def _read_tables(
    root: str, column: str | None, encoding: str | None, fingerprint: str | None
) -> dict[str, list[object]]:
    """`fingerprint` is no input; it makes changed files a different call."""
    captions: dict[str, list[object]] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(_HIDDEN))
        tables = [os.path.join(folder, name) for name in _TABLES if name in names]
        if len(tables) > 1:
            raise ConfigError(f"{' and '.join(tables)}: two tables of one folder. Keep the one that is right")
        for path in tables:
            for file_name, texts in _read_captions(path, column, encoding):
                image = os.path.relpath(os.path.join(folder, file_name), root).replace(os.sep, "/")
                captions.setdefault(image, []).extend(texts)
    return captions


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
