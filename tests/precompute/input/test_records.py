"""What a plan says of its sources: the same archives are the same wherever they lie, others are not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from precompute.input.open_records import open_records
from precompute.input.records import Records, SourceOptions
from precompute.input.units import Unit
from tests.support.raw import cc12m, coco, diffusiondb, journeydb, sa1b, textcaps
from tests.support.raw.archive import write_tar, write_tgz
from tests.support.raw.photos import jpeg
from tests.support.raw.server import serve


def write_tars(folder: Path, first: int = 0) -> Path:
    for number in range(2):
        pictures = [
            (f"k{i}.{suffix}", data)
            for i in range(3)
            for suffix, data in (("jpg", jpeg(first)), ("txt", b"a"))
        ]
        write_tar(folder / f"{number}.tar", pictures)
    return folder


def same(one: Records, other: Records) -> bool:
    return (one.plan, one.recipe) == (other.plan, other.recipe)


def test_archives_under_another_mount_point_are_the_same(tmp_path: Path) -> None:
    one, other = (
        open_records(SourceOptions("builders/webdataset", data_dir=write_tars(tmp_path / mount)))
        for mount in ("a", "mnt/b")
    )
    assert same(one, other)


def test_archive_that_is_fetched_again_is_the_same(tmp_path: Path) -> None:
    source = SourceOptions("builders/webdataset", data_dir=write_tars(tmp_path))
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:5000])
    cut = open_records(source)
    (tmp_path / "0.tar").write_bytes(whole)
    assert same(cut, open_records(source))


def test_other_tars_of_the_same_names_are_not_the_same(tmp_path: Path) -> None:
    one, other = (
        open_records(SourceOptions("builders/webdataset", data_dir=write_tars(tmp_path / str(first), first)))
        for first in (0, 1)
    )
    assert one.plan != other.plan


def sa1b_by_links(path: Path, token: str) -> Records:
    path.parent.mkdir()
    lines = [f"sa_{number:06d}.tar\thttps://scontent.example.org/{token}/a?oh={token}" for number in range(3)]
    path.write_text("\n".join(["file_name\tcdn_link", *lines]))
    return open_records(SourceOptions("builders/sa1b", options=(f"links={path}",)))


def test_links_of_another_day_lead_to_the_same_archives(tmp_path: Path) -> None:
    monday, friday = (sa1b_by_links(tmp_path / day / f"{day}.txt", day) for day in ("monday", "friday"))
    assert same(monday, friday)
    told = json.dumps([monday.plan, monday.recipe])
    assert "monday" not in told and str(tmp_path) not in told


def test_annotations_that_have_changed_are_not_the_same(tmp_path: Path) -> None:
    sa1b.make(tmp_path)
    source = SourceOptions("builders/sa1b", data_dir=tmp_path)
    before = open_records(source)
    assert same(before, open_records(source))
    write_tgz(tmp_path / "SA1B_caption.tar.gz", [("sa_1010.txt", b"New caption.")])
    assert before.plan != open_records(source).plan


def foreign(*files: object) -> Records:
    option = f"data_files={json.dumps([str(file) for file in files])}"
    return open_records(
        SourceOptions("webdataset", options=(option,), image_column="jpg", caption_column="txt")
    )


def test_recipe_of_other_datasets_names_no_local_path(tmp_path: Path) -> None:
    one, other = (foreign(*sorted(write_tars(tmp_path / mount).iterdir())) for mount in ("a", "mnt/b"))
    assert same(one, other)
    assert str(tmp_path) not in json.dumps(one.recipe)


def test_recipe_holds_no_signature_of_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # which refuses loopback too
    with serve(write_tars(tmp_path)) as server:
        records = foreign(f"{server.url}/0.tar?signature=SECRET")
    assert f"{server.url}/0.tar" in json.dumps(records.recipe)
    assert "SECRET" not in json.dumps([records.plan, records.recipe])


def test_patience_begins_anew_with_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outages that are over do not add up, however many there are in a unit that takes days."""
    monkeypatch.setattr("builders.archives.backoff.cut_short", lambda seconds: False)
    monkeypatch.setattr("builders.archives.backoff.PATIENCE", 3.0)
    write_tar(
        tmp_path / "raw.tar",
        [
            (f"k{i:02d}.{end}", jpeg(i, (64, 64)) if end == "jpg" else b"a")
            for i in range(8)
            for end in ("jpg", "txt")
        ],
    )
    records = open_records(
        SourceOptions(
            "webdataset",
            options=(f"data_files={tmp_path / 'raw.tar'}",),
            image_column="jpg",
            caption_column="txt",
        )
    )
    raw, down = Records.raw_rows, set(range(8))

    def faulty(self: Records, unit: Unit) -> Iterator[Any]:
        for number, values in enumerate(raw(self, unit)):
            if number in down:
                down.discard(number)
                raise ConnectionError("Server disconnected")
            yield values

    monkeypatch.setattr(Records, "raw_rows", faulty)
    assert len(list(records.rows(records.units[0]))) == 8 and not down


@pytest.mark.parametrize("raw", [cc12m, coco, diffusiondb, journeydb, sa1b, textcaps])
def test_each_row_tells_how_much_of_its_unit_was_read(raw: Any, tmp_path: Path) -> None:
    raw.make(tmp_path)
    name = raw.__name__.rpartition(".")[2]
    records = open_records(SourceOptions(f"builders/{name}", data_dir=tmp_path))
    shares = [record.share for record in records.rows(records.units[0])]
    known = [share for share in shares if share is not None]
    assert len(known) == len(shares) and known == sorted(known) and len(set(known)) > 2
    assert 0 <= known[0] < 0.5 and 0.9 < known[-1] <= 1
