"""JourneyDB's tgz of images and tgz of jsonl: repathed and not, unlabelled, unlisted, and listed but absent."""

from pathlib import Path

from .archive import dumps, write_tgz
from .photos import jpeg, png, truncated


def record(path: str, prompt: str, caption: str | None = "A sentence.") -> dict[str, object]:
    record: dict[str, object] = {
        "img_path": path,
        "prompt": prompt,
        "Task1": {"Style": ["gold"], "Content": [], "Atmosphere": [], "Others": []},
        "Task3": {
            "Style Relevant Questions and Answers": [{"Question1": "?", "Options": {"A": "x"}, "Answer": "A"}]
        },
    }
    return record | ({"Task2": {"Caption": caption}} if caption else {})


def write_annotations(path: Path, records: list[dict[str, object]]) -> None:
    write_tgz(path, [(path.name.removesuffix(".tgz"), b"\n".join(dumps(record) for record in records))])


def make(root: Path) -> None:
    write_tgz(
        root / "data/train/imgs/000.tgz",
        [
            ("000/", b""),
            ("000/a.jpg", jpeg(0)),
            ("000/B.JPG", jpeg(1)),
            ("./000/c.png", png(2)),
            ("000/cut.jpg", truncated(jpeg(3))),
            # It has no annotation; the name is a cut prompt and no caption.
            ("000/An elegant gold head_1f.jpg", jpeg(4)),
        ],
    )
    write_tgz(root / "data/train/imgs/001.tgz", [("001/a.jpg", jpeg(5))])
    write_annotations(
        root / "data/train/train_anno_realease_repath.jsonl.tgz",
        [
            record("./001/a.jpg", "no task two --v 4", None),
            record("./000/c.png", "see https://s.mj.run/x a cup --ar 2:3 --v 4"),
            record("./000/gone.jpg", "its image is gone"),
            record("./077/a.jpg", "its archive is not there"),
            record("./000/a.jpg", "an elegant gold and white tikka head jewelry,"),
            record("MidjourneyDB_03_latest/./imgs/Upscaled_x.jpg", "not repathed"),
            record("./000/cut.jpg", "cut short"),
            record("./000/B.JPG", "upper case"),
        ],
    )
    write_tgz(root / "data/valid/imgs/000.tgz", [("000/a.jpg", jpeg(6))])
    write_annotations(
        root / "data/valid/valid_anno_repath.jsonl.tgz", [record("./000/a.jpg", "of the valid split")]
    )
    write_tgz(root / "data/test/imgs.tgz", [("imgs/a.jpg", jpeg(7))])
    write_annotations(
        root / "data/test/test_questions.jsonl.tgz", [{"img_path": "./imgs/a.jpg", "Task3": {}}]
    )


EXPECTED = {
    "default": {
        "train": [
            ("train-000-a", "an elegant gold and white tikka head jewelry,"),
            ("train-000-B", "upper case"),
            ("train-000-c", "see a cup"),
            ("train-000-cut", "!undecodable"),
            ("train-000-An_elegant_gold_head_1f-1347dfc1", "!missing_caption"),
            # This one is not repathed.
            ("train-000-MidjourneyDB_03_latest_imgs_Upscaled_x_jpg-e33ff7c0", "!missing_image"),
            ("train-000-gone", "!missing_image"),
            ("train-001-a", "no task two"),
        ],
        "validation": [("validation-000-a", "of the valid split")],
    }
}
