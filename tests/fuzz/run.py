"""Coverage-guided fuzzing of what reads strangers' bytes, by hand: `python tests/fuzz/run.py TARGET [CORPUS] [-max_total_time=600]`.

Needs `atheris` in an environment of its own. TARGET is one of tar, zip, image, json, captions, table. Anything but the errors that a
reader may raise is a find; so is a run of more than ten seconds.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["builders"]):
    from builders.archives.members import all_members, group_by_key, iter_members, read_facts
    from builders.core import images, shallow_json
    from builders.core.captions import clean_captions
    from builders.core.errors import ArchiveError, ConfigError
    from builders.core.tables import read_table
    from builders.core.text_file import decode_text


def archive(data: bytes) -> None:
    """Members and samples; an archive of this size that holds 100,000 members holds them by a fault of the reader."""
    try:
        for number, member in enumerate(all_members(io.BytesIO(data))):
            assert number < 100_000
            member.read()
        for _, parts in group_by_key(iter_members(io.BytesIO(data))):
            read_facts(parts)
    except ArchiveError:
        pass


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
    try:
        shallow_json.load(data)
    except ValueError:
        pass


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
    "tar": lambda data: archive(data if data[:2] != b"PK" else b""),
    "zip": lambda data: archive(b"PK" + data),
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
