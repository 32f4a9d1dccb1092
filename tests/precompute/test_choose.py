"""The command: how many samples of what, and a file of keys that the loader, pandas and DuckDB read."""

from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from precompute import choose
from precompute.choose import Config
from precompute.errors import UsageError
from tests.support.faulty_server import serve
from tests.support.forked import run_command
from tests.support.keyed_shards import FIELDS, write_layer, write_shards


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTMILL_CACHE", str(tmp_path / "cache"))
    return write_shards(tmp_path / "shards", [20, 13, 0, 17])


def test_the_table_says_how_many_of_what(folder: Path, tmp_path: Path) -> None:
    where, kept = "key < 'k000010'", tmp_path / "kept.parquet"
    said = choose.count_chosen(Config(str(folder), where=where, subset=(0, 0.5), output=kept))
    lines = said.splitlines()
    assert lines[0].split() == ["all", "50", "100.00%"]
    counted = duckdb.sql(
        f"select count(*) from '{folder}/*.parquet' where status = 'ok' and {where}"
    ).fetchall()
    assert int(lines[1].split()[-2]) == counted[0][0] == 9
    keys = pq.read_table(kept)["key"].to_pylist()
    assert int(lines[3].split()[1]) == len(keys) and "of 4 shards" in lines[3]
    assert all(key < "k000010" for key in keys) and len(set(keys)) == len(keys)
    again = choose.count_chosen(Config(str(folder), keys=kept))
    assert int(again.splitlines()[-1].split()[1]) == len(keys)


def test_a_remote_dataset_is_asked_for_its_sidecars_alone(folder: Path, tmp_path: Path) -> None:
    with serve(folder) as server:
        said = choose.count_chosen(
            Config(server.url, where="width is null", output=tmp_path / "kept.parquet")
        )
        asked = {Path(request[0]).suffix for request in server.requests}
    assert said.splitlines()[0].split()[:2] == ["all", "50"]
    assert asked == {".json", ".parquet"}


def test_samples_that_a_layer_lacks_do_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [field for field in FIELDS if field.name.startswith("moments")]
    recipe, kept = {"dataset": {"path": "x"}}, tmp_path / "kept.parquet"
    base = write_shards(tmp_path / "base", [9, 0, 6], recipe=recipe, fields=images)
    lost = {"one": ["k000001", "k000012"], "two": ["k000012", "k000015"]}
    layers = [
        write_layer(tmp_path / name, base, [field], lost[name])
        for name, field in (("one", "caption_latents"), ("two", "latents_512"))
    ]
    arguments = [
        str(base),
        "--layers",
        *map(str, layers),
        "--where",
        "key < 'k000014'",
        "--output",
        str(kept),
    ]
    monkeypatch.setattr("sys.argv", ["choose.py", *arguments])
    choose.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["all", "12", "100.00%"] and lines[2].split()[1] == "9"
    keys = [f"k{n:06d}" for n in (*range(1, 10), *range(12, 18))]
    whole = [key for key in keys if key not in lost["one"] + lost["two"]]
    assert pq.read_table(kept)["key"].to_pylist() == [key for key in whole if key < "k000014"]
    with pytest.raises(UsageError, match="is a layer of other shards") as error:
        choose.count_chosen(Config(str(folder), layers=(str(layers[0]),)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "widht > 3"}, "widht.*There are: key, caption, width"),
        ({"keys": Path("nowhere.parquet")}, "keys='nowhere.parquet'"),
        ({"subset": (0.5, 0.5)}, "subset=.*0 <= a < b <= 1"),
        ({"split": "test"}, "split='test'"),
    ],
)
def test_what_cannot_be_is_one_line(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        choose.count_chosen(Config(str(folder), **options))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_from_the_shell(folder: Path) -> None:
    done = run_command("precompute/choose.py", folder, "--subset", "0", "0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("together")
