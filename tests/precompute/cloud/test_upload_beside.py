"""README: tars are uploaded while the next unit is encoded. The store holds the first back until the next has been begun."""

from pathlib import Path

from precompute import run
from tests.support.faulty_store import Environ, FaultyStore
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.waiting import wait_until
from tests.support.worker import TOY


def test_the_next_unit_grows_while_a_tar_is_sent(store: FaultyStore, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for unit in range(2):
        rows = [(f"{unit}{row}", unit * 4 + row) for row in range(4)]
        write_tar(
            tmp_path / f"raw/{unit:05d}.tar",
            [
                member
                for key, seed in rows
                for member in ((f"{key}.jpg", jpeg(seed, (256, 256))), (f"{key}.txt", b"a caption"))
            ],
        )
    held: list[bool] = []  # that the next unit came while the first tar was held back

    def answer(environ: Environ) -> None:
        if (
            environ["REQUEST_METHOD"] == "PUT"
            and environ["PATH_INFO"].endswith("train-00000.tar")
            and not held
        ):
            held.append(False)
            wait_until(lambda: list(scratch.rglob("train-00001.*")), 25)
            held[0] = True

    store.front.answer = answer
    config = run.Config(
        "builders/webdataset",
        "s3://bucket/beside",
        data_dir=tmp_path / "raw",
        scratch=scratch,
        store_option=store.options,
        **TOY,
    )
    run.run(config)
    assert held == [True]
    assert {"train-00000.tar", "train-00001.tar", "manifest.json"} <= store.objects("beside").keys()
