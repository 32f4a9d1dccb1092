"""`where=`, `keys=` and `subset=`: the right samples, exactly once, whatever the shards; held against DuckDB and pyarrow on the sidecars."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from loader import make_loader
from loader.cache import Cache
from loader.condition import Condition, select_samples
from loader.joined import open_dataset
from loader.remote import open_files
from precompute.shards.markers import manifest_of
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.unit_writer import SidecarRow, UnitWriter
from tests.support.faulty_server import serve
from tests.support.keyed_shards import FIELDS, arrays

MEMBERS = ["caption_latents"]
SIZES = [6, 1, 9, 5]  # samples of each shard


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty samples with widths, captions and extras, among rejected rows."""
    folder, number = tmp_path_factory.mktemp("scored"), 0
    names, markers = [field.name for field in FIELDS], []
    for unit, size in enumerate(SIZES):
        writer = UnitWriter(OutputFolder(folder), unit, [*names, "txt"], 1 << 20, "test")
        for index in range(size + 1 + (size > 2)):
            number += 1
            extras: dict[str, Any] = {"aesthetic": number / 4, "tag": "odd" if number % 2 else "even"}
            if number % 5 == 0:
                del extras["aesthetic"]
            row = SidecarRow(
                f"k{number:03d}", f"picture {number}", 100 * (number % 7), 512, "made up", extras
            )
            if index in (0, 3):
                writer.reject(row, "too_small")
                continue
            values = arrays(row.key)
            members: dict[str, Any] = {f"{name}.npy": values[name] for name in names}
            writer.write(row, {**members, "txt": str(row.caption).encode()})
        markers.append(writer.commit({"dataset": {"path": "scored"}}, FIELDS, {"units": len(SIZES)}, {}))
        writer.discard()
    write_file(
        folder / "manifest.json",
        manifest_of({"dataset": {"path": "scored"}}, FIELDS, markers).to_json().encode(),
    )
    return folder


def chosen(folder: Path, cache: Path, **condition: Any) -> list[list[str]]:
    """Keys of the chosen samples, shard by shard."""
    source = open_dataset(open_files(folder, Cache(cache, None), 1.0), "train", cache)
    rows = select_samples(source, Condition(**condition), cache, MEMBERS, [])
    found = []
    for number, part in enumerate(rows):
        table = source.open(number, MEMBERS, []).table if len(part) else None
        found.append([table.key(int(n)) for n in part] if table else [])
    return found


def facts(folder: Path) -> pa.Table:
    """All ok rows with their extras as columns, by pyarrow and json alone."""
    rows = [
        r
        for path in sorted(folder.glob("*.parquet"))
        for r in pq.read_table(path).to_pylist()
        if r["status"] == "ok"
    ]
    names = ("aesthetic", "tag")
    return pa.Table.from_pylist([{**r, **{n: json.loads(r["extras"]).get(n) for n in names}} for r in rows])


@pytest.mark.parametrize(
    "where",
    [
        "width >= 300",
        "aesthetic > 2.5 and width < 500",
        "tag = 'odd' or aesthetic is null",
        "caption like '%1%'",
        "WIDTH = 100",
        "length(caption) > 9",
        "key in ('k003', 'k004')",
        "width > (select avg(width) from (values (100), (500)) t(width))",
        "true",
        "false",
    ],
)
def test_where_gives_what_duckdb_finds_in_the_sidecars(scored: Path, cache: Path, where: str) -> None:
    with duckdb.connect() as connection:
        relation = connection.from_arrow(facts(scored)).filter(where).order("key").project("key")
        expected = [row[0] for row in relation.fetchall()]
    for _ in range(2):  # the second time from the cache
        assert [key for part in chosen(scored, cache, where=where) for key in part] == expected


@pytest.mark.parametrize(
    "where",
    [
        "widht > 3",
        "width >",
        "1 = 1; drop table x",
        "exists (select * from read_csv('/etc/passwd'))",
        "exists (select * from '/etc/passwd')",
        "exists (select * from read_text('http://127.0.0.1:1/x'))",
        "exists (select * from COLUMNS)",
        "getenv('HOME') = '/root'",
    ],
)
def test_a_condition_that_is_wrong_or_reaches_out_is_one_line(scored: Path, cache: Path, where: str) -> None:
    with pytest.raises(
        ValueError, match=r"^where=.*There are: .*width.*aesthetic|^where=.*There are: .*width"
    ) as error:
        chosen(scored, cache, where=where)
    assert "\n" not in str(error.value)


def test_subsets_share_nothing_and_leave_nothing_out(scored: Path, cache: Path) -> None:
    everything = [key for part in chosen(scored, cache, subset=(0, 1)) for key in part]
    assert len(everything) == len(set(everything)) == sum(SIZES)
    parts = [chosen(scored, cache, subset=pair) for pair in ((0, 0.3), (0.3, 0.9), (0.9, 1))]
    assert sorted(key for part in parts for shard in part for key in shard) == everything


def test_subset_is_a_matter_of_keys_and_not_of_shards(scored: Path, shards: Path, cache: Path) -> None:
    tars = [key for part in chosen(shards, cache, subset=(0, 0.5)) for key in part]
    assert 25 < len(tars) < 75
    (shards_without := cache.parent / "plain").mkdir()
    for tar in shards.glob("*.tar"):
        (shards_without / tar.name).symlink_to(tar)
    assert sorted(key for part in chosen(shards_without, cache, subset=(0, 0.5)) for key in part) == tars


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".txt", ""])
def test_keys_from_a_file_or_a_list(scored: Path, cache: Path, tmp_path: Path, suffix: str) -> None:
    wanted = ["k005", "k012", "k012", "of no sample"]
    path = tmp_path / f"kept{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"score": [1, 2, 3, 4], "key": wanted}), path)
    else:
        path.write_text("\n".join([*(["key"] if suffix == ".csv" else []), *wanted]))
    keys = path if suffix else wanted
    assert [key for part in chosen(scored, cache, keys=keys) for key in part] == ["k005", "k012"]
    both = chosen(scored, cache, keys=keys, where="width = 500")
    assert [key for part in both for key in part] == ["k005", "k012"][:2]


def test_a_kept_answer_that_is_damaged_is_made_anew(scored: Path, cache: Path) -> None:
    expected = chosen(scored, cache, where="width > 200")
    kept = list((cache / "selected").iterdir())
    assert len(kept) == 1
    whole = kept[0].read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"x" * len(whole), whole[:-1]):
        kept[0].write_bytes(damaged)
        assert chosen(scored, cache, where="width > 200") == expected
    assert kept[0].read_bytes() == whole


@pytest.mark.parametrize("subset", [(0, 0), (0.5, 0.2), (-1, 1), (0, 2), (float("nan"), 1)])
def test_a_subset_out_of_bounds_is_told(subset: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"subset=.*0 <= a < b <= 1"):
        Condition(subset=subset)


def test_numbers_are_numbers(scored: Path, cache: Path) -> None:
    source = open_dataset(open_files(scored, Cache(cache, None), 1.0), "train", cache)
    rows = select_samples(source, Condition(where="width = 300"), cache, [], [])
    assert all(part.dtype == np.int64 for part in rows)


# --- through make_loader ----------------------------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {
    "resolution": 256,
    "text_encoders": [""],
    "extras": ["key"],
    "seed": 3,
    "drop_last": False,
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "one": {"keys": ["k012"]},
    "some": {"where": "width >= 300"},
    "half": {"subset": (0, 0.5)},
    "both": {"where": "tag = 'odd'", "subset": (0.2, 1)},
    "all": {"where": "true"},
}


def streamed(batches: Any) -> list[str]:
    """Keys of one epoch, without what fills the last batch up; each sample's latents are held against its key."""
    keys = []
    for batch in batches:
        expected = [torch.from_numpy(arrays(key)["caption_latents"]) for key in batch["key"]]
        assert torch.equal(batch["caption_latents"][:, 0], torch.stack(expected))
        keys += batch["key"]
    return keys


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", CONDITIONS)
def test_an_epoch_is_the_chosen_samples_once(
    scored: Path, cache: Path, name: str, workers: int, world_size: int
) -> None:
    expected = {key for part in chosen(scored, cache, **CONDITIONS[name]) for key in part}
    parts = []
    for rank in range(world_size):
        place: dict[str, Any] = {"rank": rank, "world_size": world_size, "num_workers": workers}
        loader = make_loader(scored, 2, **OPTIONS, **CONDITIONS[name], **place)
        assert len(loader) == -(-len(expected) // (2 * world_size))
        parts.append(streamed(loader))
        loader.close()
    assert len({len(part) for part in parts}) == 1
    assert {key for part in parts for key in part} == expected


def test_no_sample_chosen_is_told(scored: Path) -> None:
    with pytest.raises(ValueError, match=r"where='false'.*no sample fulfils"):
        make_loader(scored, 2, **OPTIONS, where="false")


def test_a_state_belongs_to_its_condition(scored: Path) -> None:
    loader = make_loader(scored, 2, **OPTIONS, where="width >= 300")
    next(iter(loader))
    state = loader.state_dict()
    rest = streamed(loader)
    again = make_loader(scored, 2, **OPTIONS, where="width >= 300")
    again.load_state_dict(state)
    assert streamed(again) == rest
    for other in ({}, {"where": "width >= 300 and true"}, {"subset": (0, 0.5)}):
        with pytest.raises(ValueError, match="another order"):
            make_loader(scored, 2, **OPTIONS, **other).load_state_dict(state)


def test_a_remote_shard_without_a_chosen_sample_is_not_fetched(scored: Path) -> None:
    with serve(scored) as server:
        batches = make_loader(server.url, 1, **OPTIONS, keys=["k002"])
        assert streamed(batches) == ["k002"]
        batches.close()
        tars = {request[0] for request in server.requests if request[0].endswith(".tar")}
    assert tars == {"/train-00000.tar"}


def test_weights_and_conditions_go_together(scored: Path, shards: Path) -> None:
    loader = make_loader(
        [scored, shards], 2, **OPTIONS, weights=[1, 1], subset=(0, 0.5), may_differ=["dataset", "vae"]
    )
    keys = streamed(loader)
    short = [key for key in keys if len(key) == 4]
    assert 0.3 < len(short) / len(keys) < 0.7
