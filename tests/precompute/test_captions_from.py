"""`--captions NAME=FILE`: from the command to the loader, which draws them by their NAME; the recipe has the file by its contents."""

import gc
import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loader import make_loader
from loader.format import Manifest
from precompute import verify
from precompute.errors import UsageError
from tests.support.launching import TOY, run_here, tars
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

KEYS = "abcdefgh"
JOINED = {key: f"joined {key}" for key in "abch"}  # "h" has no caption of its own


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("captions_from")
    for number, keys in enumerate((KEYS[:4], KEYS[4:])):
        members = [(f"{key}.jpg", jpeg(number)) for key in keys]
        members += [(f"{key}.txt", f"own {key}".encode()) for key in keys if key != "h"]
        write_tar(root / "raw" / f"{number}.tar", sorted(members))
    rows = [{"key": f"{KEYS.index(key) // 4}-{key}", "caption": text} for key, text in JOINED.items()]
    # One of a row that is rejected, alone in its unit, and one of none.
    write_tar(root / "raw" / "2.tar", [("z.jpg", b"no picture"), ("z.txt", b"own z")])
    others = [{"key": "2-z", "caption": "z"}, {"key": "x", "caption": "x"}]
    (root / "re.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *others]))
    return root


def flags(raw: Path, output: Path, file: Path) -> tuple[str | Path, ...]:
    given = (
        "builders/webdataset",
        "--data-dir",
        raw / "raw",
        "--output",
        output,
        *TOY,
        "--resolutions",
        "64",
    )
    return (*given, "--captions", f"llava={file}")


def drawn(output: Path, **options: object) -> list[str]:
    batches = make_loader(output, 1, resolution=64, extras=["caption"], **options)
    return sorted(caption for batch in batches for caption in batch["caption"])


def test_the_loader_draws_joined_captions_by_their_name(raw, tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "out"
    told = run_here(monkeypatch, capsys, *flags(raw, output, raw / "re.jsonl"), "--max-captions", "2")
    lines = {tuple(line.split()) for line in told.splitlines()}
    assert {("written", "8"), ("llava", "4"), ("caption", "7")} <= lines
    assert "captions from elsewhere: llava: 1 of 6 rows of the file match no row, 4 records have none" in told
    own = [f"own {key}" for key in KEYS if key not in JOINED]
    assert drawn(output, captions={"llava": 1}) == sorted([*JOINED.values(), *own])
    assert drawn(output) == sorted([*JOINED.values(), *own])
    assert drawn(output, captions={"caption": 1}) == sorted(
        [JOINED["h"], *(f"own {key}" for key in KEYS[:-1])]
    )
    rows = [row for path in sorted(output.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert Counter(kind for row in rows for kind in row["caption_kinds"]) == {"llava": 5, "caption": 8}
    # With those of the rejected row. The same file elsewhere is the same recipe; another file is another one.
    before = tars(output)
    copy = shutil.copy(raw / "re.jsonl", tmp_path / "copy.jsonl")
    assert "nothing was left to do" in run_here(
        monkeypatch, capsys, *flags(raw, output, copy), "--max-captions", "2"
    )
    assert tars(output) == before
    recipe = (output / "manifest.json").read_text()
    assert "llava" in recipe and "re.jsonl" not in recipe and str(tmp_path) not in recipe
    copy.write_text('{"key": "0-a", "caption": "another"}\n')
    with pytest.raises(SystemExit):
        run_here(monkeypatch, capsys, *flags(raw, output, copy), "--max-captions", "2")
    assert "captions_from_files.sha256.llava" in capsys.readouterr().err
    # verify takes the files from the user, never from the recipe.
    with pytest.raises(UsageError, match="captions of these shards are joined from files; name them"):
        findings(output, raw, ())
    assert findings(output, raw, (f"captions_from={json.dumps({'llava': str(raw / 're.jsonl')})}",)) == []


def findings(output: Path, raw: Path, options: tuple[str, ...]) -> list[object]:
    config = verify.Config(
        str(output),
        decode=8,
        text_encoder=("toy",),
        source="builders/webdataset",
        data_dir=raw / "raw",
        options=options,
    )
    return verify.verify(config).findings


def test_behind_and_prepared(raw, tmp_path, monkeypatch, capsys) -> None:
    given = (*flags(raw, tmp_path / "out", raw / "re.jsonl"), "--captions-order", "behind", "--prepare")
    run_here(monkeypatch, capsys, *given)
    assert drawn(tmp_path / "out") == sorted([JOINED["h"], *(f"own {key}" for key in KEYS[:-1])])
    manifest = Manifest.from_json((tmp_path / "out" / "manifest.json").read_bytes())
    assert manifest.recipe["dataset"]["captions_from_files"]["order"] == "behind"


def test_a_layer_reads_images_of_rows_whose_only_caption_is_joined(
    raw, tmp_path, monkeypatch, capsys
) -> None:
    base, layer = tmp_path / "base", tmp_path / "layer"
    file = ("--captions", f"llava={raw / 're.jsonl'}")
    run_here(monkeypatch, capsys, *flags(raw, base, raw / "re.jsonl"), "--captions-order", "behind")
    given = (
        "--beside",
        base,
        "--output",
        layer,
        "--data-dir",
        raw / "raw",
        "--vae",
        "toy",
        "--resolutions",
        "32",
    )
    with pytest.raises(SystemExit):
        run_here(monkeypatch, capsys, *given)
    assert "captions of these shards are joined from files; name them" in capsys.readouterr().err
    run_here(monkeypatch, capsys, *given, *file)
    batches = make_loader((base, layer), 1, resolution=32, extras=["key"])
    assert sorted(key for batch in batches for key in batch["key"]) == [
        f"{n // 4}-{key}" for n, key in enumerate(KEYS)
    ]


def others_dataset(folder: Path, joined_by: str) -> tuple[list[str], tuple[str, ...]]:
    """An imagefolder whose rows have files, or parquet on disk whose rows have URLs; what names each row, and the flags."""
    if joined_by == "source":
        for number, key in enumerate("abc"):
            (folder / f"{key}.jpg").write_bytes(jpeg(number))
        (folder / "metadata.csv").write_text("file_name,text\na.jpg,own a\nb.jpg,own b\nc.jpg,\n")
        return [f"{folder.name}/{key}.jpg" for key in "abc"], ("--caption-column", "text")
    images = [{"bytes": jpeg(number), "path": None} for number in range(3)]
    urls = [f"http://a.test/{key}" for key in "abc"]
    table = pa.table({"image": images, "caption": [["own a", "a too"], ["own b"], None], "url": urls})
    pq.write_table(table, folder / "train.parquet")
    keys = [f"00000-{number:07d}" for number in range(3)]
    return keys if joined_by == "key" else urls, ()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("joined_by", ["source", "url", "key"])
def test_datasets_of_others_are_joined_with_the_same_account(
    joined_by, tmp_path, monkeypatch, capsys
) -> None:
    photos, output, file = tmp_path / "photos", tmp_path / "out", tmp_path / "re.jsonl"
    photos.mkdir()
    names, given = others_dataset(photos, joined_by)
    joined = {names[0]: "new a", names[2]: "<b>new c</b>", "x": "of no row"}
    rows = [{joined_by: name, "caption": caption} for name, caption in joined.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (photos, *given, "--output", output, *TOY, "--resolutions", "64", "--max-captions", "2")
    told = run_here(monkeypatch, capsys, *flags, "--captions", f"llava={file}")
    assert "captions from elsewhere: llava: 1 of 3 rows of the file match no row, 1 records have none" in told
    assert drawn(output, captions={"llava": 1}) == ["new a", "new c", "own b"]
    assert drawn(output, captions={"caption": 1}) == ["new c", "own a", "own b"]
    files = (f"captions_from={json.dumps({'llava': str(file)})}",)
    config = verify.Config(str(output), decode=3, text_encoder=("toy",), source=str(photos), options=files)
    assert not verify.verify(config).findings
    gc.collect()  # datasets' imagefolder leaves its table to the garbage collector


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("builders/demo", "--captions", "re.csv"), "--captions re.csv: write it as NAME=FILE"),
        (("builders/demo", "--captions", "a=1.csv", "--captions", "a=2.csv"), "there is a a already"),
        (("builders/demo", "--captions", "llava=nowhere.csv"), "nowhere.csv: no such file"),
        (("photos", "--captions", "caption=re.csv"), "'caption' is the kind of the dataset's own captions"),
        (("photos", "--captions", "llava=nowhere.csv"), "nowhere.csv: no such file"),
    ],
)
def test_what_cannot_be_joined_is_one_line(given, says, tmp_path, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        run_here(monkeypatch, capsys, *given, "--output", tmp_path / "out", *TOY)
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error and error.strip().count("\n") == 0
