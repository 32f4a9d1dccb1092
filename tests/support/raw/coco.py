"""COCO's zips and annotation archives, with every trap that the real ones have been seen to hold."""

from pathlib import Path

from .archive import dumps, write_zip
from .photos import jpeg, png, truncated

NUMBERS = (1, 2, 3, 4, 5, 6)


def _name(split: str, number: int) -> str:
    return (
        f"COCO_{split}_{number:012d}.jpg"
        if split.endswith("2014")
        else f"{number + 500 * (split == 'val2017'):012d}.jpg"
    )


def _photographs(split: str) -> list[tuple[str, bytes]]:
    images = {
        1: jpeg(1, mode="L"),
        2: png(2),  # a PNG named .jpg
        3: jpeg(3, orientation=6),
        4: jpeg(4),  # no annotation names it
        6: truncated(jpeg(6)),
    }
    return [(f"{split}/", b"")] + [
        (f"{split}/{_name(split, number)}", data) for number, data in images.items()
    ]


def _annotations(split: str) -> bytes:
    captions = [
        (30, 2, "A PNG in disguise"),
        (17, 1, "second of one"),
        (11, 1, "A man with a red helmet on a small moped\non a dirt road. "),
        (25, 5, "its image is not in the zip"),
        (40, 99, "no image entry either"),
        (21, 3, "first of three"),
        *((22 + extra, 3, f"caption {extra} of three") for extra in range(5)),  # six captions
        (60, 6, "a broken file"),
    ]
    return dumps(
        {
            "info": {"year": 2014},
            "images": [
                {"file_name": _name(split, number), "id": number, "height": 1, "width": 1}
                for number in (3, 1, 6, 4, 2, 5)
            ],
            "licenses": [],
            "annotations": [
                {"image_id": image, "id": id, "caption": caption} for id, image, caption in captions
            ],
        }
    )


def _karpathy() -> bytes:
    def image(folder: str, split: str, number: int) -> dict[str, object]:
        sentences = [
            {"raw": f"{split} {number} b ", "sentid": 9},
            {"raw": f"{split} {number} a", "sentid": 8},
        ]
        return {
            "filepath": folder,
            "filename": _name(folder, number),
            "cocoid": number,
            "split": split,
            "sentences": sentences,
        }

    images = [image("train2014", "train", 1), image("train2014", "train", 2), image("train2014", "train", 3)]
    images += [
        image("val2014", split, number)
        for number, split in ((1, "restval"), (2, "val"), (3, "test"), (5, "val"))
    ]
    return dumps({"dataset": "coco", "images": images})


def make(root: Path) -> None:
    for year in ("2014", "2017"):
        splits = [f"{split}{year}" for split in ("train", "val")]
        for split in splits:
            write_zip(root / f"{split}.zip", _photographs(split))
        write_zip(
            root / f"annotations_trainval{year}.zip",
            [
                (f"annotations/{kind}_{split}.json", _annotations(split) if kind == "captions" else b"{}")
                for kind in ("instances", "captions")
                for split in splits
            ],
            compression=8,
        )
    write_zip(
        root / "caption_datasets.zip", [("dataset_flickr8k.json", b"{}"), ("dataset_coco.json", _karpathy())]
    )


def _expected(split: str) -> list[tuple[str, str]]:
    outcomes = {
        1: "A man with a red helmet on a small moped on a dirt road.",
        2: "A PNG in disguise",
        3: "first of three",
        4: "!missing_caption",
        6: "!undecodable",
        5: "!missing_image",
    }
    rows = [(_name(split, number).removesuffix(".jpg"), outcome) for number, outcome in outcomes.items()]
    missing = [rows.pop(), (f"{99:012d}", "!missing_image")]  # the second known by its id alone
    return rows + sorted(missing)


EXPECTED = {
    "2014": {"train": _expected("train2014"), "validation": _expected("val2014")},
    "2017": {"train": _expected("train2017"), "validation": _expected("val2017")},
    "karpathy": {
        "train": [
            ("COCO_train2014_000000000001", "train 1 a"),
            ("COCO_train2014_000000000002", "train 2 a"),
            ("COCO_train2014_000000000003", "train 3 a"),
            ("COCO_train2014_000000000004", "!missing_caption"),
            ("COCO_train2014_000000000006", "!missing_caption"),
            ("COCO_val2014_000000000001", "restval 1 a"),
            ("COCO_val2014_000000000004", "!missing_caption"),
            ("COCO_val2014_000000000006", "!missing_caption"),
        ],
        "validation": [
            ("COCO_val2014_000000000002", "val 2 a"),
            ("COCO_val2014_000000000005", "!missing_image"),
        ],
        "test": [("COCO_val2014_000000000003", "test 3 a")],
    },
}
