"""Coverage-guided fuzzing of what reads strangers' bytes, by hand: `python tests/fuzz/run.py TARGET [CORPUS] [-max_total_time=600]`.

Needs `atheris` in an environment of its own. TARGET is one of tar, zip, image, json, captions, table. Anything but the errors that a
reader may raise is a find; so is a run of more than ten seconds, and a member of a zip that zipfile reads otherwise.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["builders"]):
    from builders.archives.documents import iter_lists
    from builders.archives.members import (
        MAX_MEMBER_SIZE,
        all_members,
        group_by_key,
        iter_members,
        read_facts,
    )
    from builders.archives.zips import count_zip, zip_names
    from builders.core import images, shallow_json
    from builders.core.captions import clean_captions
    from builders.core.errors import ArchiveError, ConfigError
    from builders.core.tables import read_table
    from builders.core.text_file import decode_text
from tests.support.judges import files_by_zipfile


def archive(data: bytes) -> dict[str, bytes] | None:
    """Members and samples, None of a damaged one; that 100,000 members fit into an archive of this size is a fault of the reader."""
    contents = {}
    try:
        for number, member in enumerate(all_members(io.BytesIO(data))):
            assert number < 100_000
            contents[member.name.partition("\0")[0]] = member.read()
        for _, parts in group_by_key(iter_members(io.BytesIO(data))):
            read_facts(parts)
    except ArchiveError:
        return None
    return contents


def tar(data: bytes) -> None:
    """Read it as it is, and with right checksums, behind which hardly any mutation would get."""
    if data[:2] != b"PK":
        archive(data)
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block) - sum(block[148:156]) + 8 * 32
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    archive(b"".join(blocks))


def zipped(data: bytes) -> None:
    """What zipfile reads is there, and reads the same; ranges are the whole, and the names those of the files."""
    file, contents = io.BytesIO(data), archive(data)
    if contents is None:
        return
    for name, expected in files_by_zipfile(data, MAX_MEMBER_SIZE):
        # What it refuses may be right: for a flag, or for bytes behind the end of what was packed.
        assert contents[name] in expected or expected == {b""}, name
    parts = [member.name for index in range(3) for member in all_members(file, index, 3)]
    assert parts == [member.name for member in all_members(file)]
    assert len(list(zip_names(file))) == count_zip(file) >= len(parts)


def image(data: bytes) -> None:
    """What passes the gate with its pixels checked must decode, to the size that was told."""
    try:
        info = images.probe(data)
        if info.width * info.height > 2**22 or not images.is_whole(data, info.format, check_pixels=True):
            return
    except images.UndecodableImage:
        return
    assert images.decode_rgb(data).size == (info.width, info.height)


def json(data: bytes) -> None:
    """One value, and the lists of a document, which are the same as Python's own reader gives."""
    try:
        value = shallow_json.load(data)
    except ValueError:
        value = None
    try:
        found = list(iter_lists(io.BytesIO(data)))
    except ValueError:
        return
    if isinstance(value, dict) and len(value) == data.count(b":") == len({key for key, _ in found}):
        assert repr(found) == repr([(key, item) for key, items in value.items() for item in items])


def captions(data: bytes) -> None:
    """Cleaned by each profile: light twice is light once."""
    try:
        text = decode_text(data)
    except ValueError:
        return
    for profile in ("none", "light", "deepfloyd"):
        cleaned, _ = clean_captions([text], profile)
        if profile == "light" and cleaned:
            assert clean_captions([cleaned[0][1]], profile)[0] == cleaned


def table(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for kind in ("csv", "jsonl"):
            path = Path(folder, f"metadata.{kind}")
            path.write_bytes(data)
            try:
                list(read_table(str(path)))
            except ConfigError:
                pass


TARGETS: dict[str, Callable[[bytes], None]] = {
    "tar": tar,
    "zip": lambda data: zipped(b"PK" + data),
    "image": image,
    "json": json,
    "captions": captions,
    "table": table,
}

if __name__ == "__main__":
    # What is imported at first use takes more than a find on a busy machine.
    TARGETS[sys.argv[1]](b"<b>warm</b>")
    atheris.Setup([sys.argv[0], "-timeout=10", *sys.argv[2:]], TARGETS[sys.argv[1]])
    atheris.Fuzz()
