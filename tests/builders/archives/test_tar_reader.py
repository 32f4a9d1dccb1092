"""The tar reader against GNU tar: the same members of whatever `tar` packs, and damage that is told, whatever it is."""

import gzip
import io
import random
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from builders.archives.tar_reader import LONGEST_END, iter_tar
from builders.core.errors import ArchiveError

FORMATS = ("v7", "ustar", "gnu", "oldgnu", "pax")
MEMBERS = [(f"{name}.{kind}", f"{name} {kind}".encode() * 300) for name in "abc" for kind in ("jpg", "txt")]


def ours(data: bytes) -> dict[str, bytes]:
    return {entry.name: entry.read() for entry in iter_tar(io.BytesIO(data), 2**30) if entry.fault is None}


def packed(members: list[tuple[str, bytes]] = MEMBERS, format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def offset_of(data: bytes, name: str) -> int:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name).offset


def before_the_break(data: bytes) -> tuple[dict[str, bytes], str]:
    """The members up to the damage, and what is said of it."""
    found = {}
    with pytest.raises(ArchiveError) as error:
        for entry in iter_tar(io.BytesIO(data), 2**30):
            found[entry.name] = entry.read()
    return found, str(error.value)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of many sizes and names, hard and symbolic links to some of them."""
    rng, root = random.Random(3), tmp_path / "tree"
    names = ["a.jpg", "__b__.jpg", "dir/c.jpg", "dir/deep/d.txt", "größe 名.txt", "e"]
    for size, name in zip((0, 1, 511, 512, 513, 70_000), names, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(rng.randbytes(size))
    (root / "hard.jpg").hardlink_to(root / "dir/c.jpg")
    (root / "dir/soft.txt").symlink_to("deep/d.txt")
    return root


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("long", [False, True])
def test_what_gnu_tar_packs_is_read_as_gnu_tar_reads_it(
    tree: Path, tmp_path: Path, format: str, long: bool
) -> None:
    if long and format in ("v7", "ustar"):
        pytest.skip("it holds no such names")
    if long:
        deep = tree / "/".join(["long" * 10] * 4)
        deep.mkdir(parents=True)
        (deep / f"{'n' * 120}.jpg").write_bytes(b"long name")
    archive = tmp_path / "x.tar"
    subprocess.run(["tar", f"--format={format}", "--sort=name", "-cf", archive, "-C", tree, "."], check=True)
    listed = subprocess.run(
        ["tar", "-tf", archive, "--quoting-style=literal"], capture_output=True, check=True
    ).stdout.decode()
    names = {name.removeprefix("./") for name in listed.splitlines() if not name.endswith("/")}
    found = ours(archive.read_bytes())
    assert found == {name: (tree / name).read_bytes() for name in names} and len(names) == 8 + long
    assert ours(gzip.decompress(gzip.compress(archive.read_bytes()))) == found


@pytest.mark.parametrize(
    "options",
    [
        ["--label=one volume", "--format=gnu"],
        ["--pax-option=globexthdr.name=g,comment=of all", "--format=pax"],
    ],
)
def test_a_label_and_a_header_of_all_members_are_passed_over(
    tree: Path, tmp_path: Path, options: list[str]
) -> None:
    archive = tmp_path / "x.tar"
    subprocess.run(
        ["tar", *options, "--sort=name", "-cf", archive, "-C", tree, "."], check=True, stderr=subprocess.PIPE
    )
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in tree.rglob("*.*")}
    entries = list(iter_tar(io.BytesIO(archive.read_bytes()), 2**30))
    assert not any(entry.fault for entry in entries)
    assert ours(archive.read_bytes()) == {**files, "e": (tree / "e").read_bytes()}


@pytest.mark.parametrize("version", ["old", "0.0", "0.1", "1.0"])
def test_a_sparse_member_is_told_and_costs_no_other(tree: Path, tmp_path: Path, version: str) -> None:
    with open(tree / "b.sparse", "wb") as file:
        for at in range(0, 40 * 2**16, 2**16):
            file.seek(at)
            file.write(b"x" * 5000)
    how = ["--format=gnu"] if version == "old" else ["--format=pax", f"--sparse-version={version}"]
    subprocess.run(["tar", "-S", *how, "--sort=name", "-cf", tmp_path / "x.tar", "-C", tree, "."], check=True)
    entries = [
        (entry.name, entry.read(), entry.fault)
        for entry in iter_tar(io.BytesIO((tmp_path / "x.tar").read_bytes()), 2**30)
    ]
    (sparse,) = [(name, data) for name, data, fault in entries if fault]
    assert sparse == ("b.sparse", b"")
    assert {name: data for name, data, fault in entries if not fault} == {
        path.relative_to(tree).as_posix(): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and path.name != "b.sparse"
    }


def test_a_link_that_leads_nowhere_is_told() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in (
            ("x.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("y.jpg", tarfile.LNKTYPE, "later"),
            ("d/z.jpg", tarfile.SYMTYPE, "../../up"),
            ("fifo", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    faults = {entry.name: (entry.read(), entry.fault) for entry in iter_tar(io.BytesIO(out.getvalue()), 99)}
    assert set(faults) == {"x.jpg", "y.jpg", "d/z.jpg", "fifo"}
    assert all(data == b"" and fault for data, fault in faults.values())


# --- ends ------------------------------------------------------------------------------------------------------------------------------


def test_a_cut_between_two_members_is_no_whole_tar() -> None:
    data = packed()
    found, said = before_the_break(data[: offset_of(data, "b.jpg")])
    assert found == dict(MEMBERS[:2]) and "end mark" in said


def test_no_bytes_are_no_tar() -> None:
    assert before_the_break(b"")[0] == {}


def test_a_download_with_zeros_for_its_second_half_is_no_whole_tar() -> None:
    data = packed([(name, body * 9) for name, body in MEMBERS])
    cut = offset_of(data, "b.jpg")
    found, said = before_the_break(data[:cut] + bytes(len(data) - cut))
    assert list(found) == ["a.jpg", "a.txt"] and "zeros" in said


def test_two_tars_end_to_end_are_read_as_gnu_tar_does_with_ignore_zeros(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(packed(MEMBERS[:3]) + packed(MEMBERS[3:]))
    listed = subprocess.run(
        ["tar", "-tif", tmp_path / "x.tar"], capture_output=True, text=True, check=True
    ).stdout
    found = ours((tmp_path / "x.tar").read_bytes())
    assert list(found) == listed.split() and found == dict(MEMBERS)


@pytest.mark.parametrize("records", ["1", "20"])
def test_padding_as_writers_have_it_is_whole(tree: Path, tmp_path: Path, records: str) -> None:
    subprocess.run(
        ["tar", "-b", records, "--sort=name", "-cf", tmp_path / "x.tar", "-C", tree, "."], check=True
    )
    data = (tmp_path / "x.tar").read_bytes()
    assert (
        len(ours(data)) == 8 == len(ours(data.rstrip(b"\0") + bytes(1024 + -len(data.rstrip(b"\0")) % 512)))
    )
    assert len(data) - len(data.rstrip(b"\0")) < LONGEST_END


# --- damage ----------------------------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_of_a_header_is_seen_as_gnu_tar_sees_it(tmp_path: Path) -> None:
    """Where GNU tar finds a header damaged, so do we; nowhere does a member come out under another name or with other bytes."""
    data, rng = packed(), random.Random(5)
    at = offset_of(data, "b.jpg")
    for bit in rng.sample(range(512 * 8), 60):
        damaged = bytearray(data)
        damaged[at + bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.tar").write_bytes(damaged)
        judge = subprocess.run(["tar", "-tf", tmp_path / "x.tar"], capture_output=True, check=False)
        found, _ = before_the_break(bytes(damaged))
        assert found == dict(MEMBERS[:2]) and judge.returncode != 0, bit


def extended(body: bytes, kind: bytes = b"x", size: bytes | None = None) -> bytes:
    """A tar whose one member has an extension header of the given content, or one that claims another size."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(body)
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if size is not None:
        header[124:136] = size
    header[148:156] = b" " * 8
    header[148:155] = f"{sum(header):06o}\0".encode()
    return bytes(header) + body + bytes(-len(body) % 512) + packed(MEMBERS[:1])


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "record",
    [b"0 path=x\n", b"00 a=b\n", b"-9 path=x\n", b"3 a\n=b\n", b"999 path=x\n", b"x path=x\n", b" path=x\n", b"12 path=abcd", b"1\n",
     b"11 size=-1\n", b"12 size=1_0\n", b"12 size=0x1\n", b"30 size=99999999999999999999\n", b"30 size=9999999999999999999\n"],
)  # fmt: skip
def test_a_damaged_pax_header_ends_the_tar_and_never_hangs(record: bytes) -> None:
    with pytest.raises(ArchiveError):
        ours(extended(record))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 12,
        b"\xff" * 11 + b"\0",
        b"-0000000512\0",
        b"\x80" + b"\xff" * 11,
        b"0o17\0" + bytes(7),
        b"1_0\0" + bytes(8),
    ],
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"5", b"2"])
def test_a_negative_or_absurd_size_ends_the_tar_and_never_hangs(size: bytes, kind: bytes) -> None:
    with pytest.raises(ArchiveError):
        ours(extended(b"", kind, size))


def test_pax_names_and_sizes_are_heeded() -> None:
    record = b"11 path=zz\n"
    assert ours(extended(record)) == {"zz": MEMBERS[0][1]}
    assert ours(extended(record + b"19 comment=" + b"x" * 7 + b"\n")) == {"zz": MEMBERS[0][1]}
    assert ours(extended(b"29 path=" + "名前名前名前".encode() + b".j\n")) == {
        "名前名前名前.j": MEMBERS[0][1]
    }


def test_random_damage_is_an_archive_error_or_the_members_that_gnu_tar_finds(tmp_path: Path) -> None:
    """Whatever is overwritten, removed or put in: nothing else is raised, nothing hangs."""
    rng, data = random.Random(11), packed(format=tarfile.PAX_FORMAT, members=[*MEMBERS, ("n" * 120, b"long")])
    started = time.monotonic()
    for _ in range(400):
        damaged = bytearray(data)
        at = rng.randrange(len(damaged) // 512) * 512 + rng.choice((0, 124, 148, 156, 257, 300))
        match rng.randrange(4):
            case 0:
                damaged[at : at + 12] = rng.randbytes(12)
            case 1:
                del damaged[at : at + 512]
            case 2:
                damaged[at:at] = rng.choice((bytes(512), rng.randbytes(512)))
            case 3:
                del damaged[at:]
        try:
            found = ours(bytes(damaged))
        except ArchiveError:
            continue
        (tmp_path / "x.tar").write_bytes(damaged)
        judge = subprocess.run(
            ["tar", "-tif", tmp_path / "x.tar", "--quoting-style=literal"], capture_output=True, check=False
        )
        assert judge.returncode == 0 and list(found) == judge.stdout.decode().splitlines()
    assert time.monotonic() - started < 20
