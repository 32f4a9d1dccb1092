"""TextCaps' annotation files and image zip: a row for each caption, paths that do not match the zip, sideways photographs."""

from pathlib import Path

from .archive import dumps, write_zip
from .photos import jpeg


def _rows(split: str, images: dict[str, list[str]], captioned: bool = True) -> bytes:
    rows = []
    for turn in range(5):  # rows of one image are not adjacent, and the ids fall
        for image_id, captions in images.items():
            row = {
                "image_id": image_id,
                "image_classes": ["Perfume"],
                "flickr_original_url": f"https://farm.example.org/{image_id}.jpg",
                "flickr_300k_url": "",
                "image_width": 9,
                "image_height": 9,
                "set_name": split,
                "image_path": f"{split}/{image_id}.jpg",  # the zip says train_images/
            }
            if captioned and turn < len(captions):
                row |= {"caption_id": 1000 - turn, "caption_str": captions[turn], "reference_strs": captions}
            if captioned is (turn < len(captions)):
                rows.append(row)
    return dumps({"dataset_type": split, "dataset_name": "textcaps", "dataset_version": 0.1, "data": rows})


def make(root: Path) -> None:
    train = {
        "00aa": ["five", "four", "three", "two", 'a "Listerine" bottle ™'],
        "00ab": ["upright?"],
        "00ac": ["gone"],
        "00ad": ["grey"],
        "00ae": [""],
    }
    (root / "TextCaps_0.1_train.json").write_bytes(_rows("train", train))
    (root / "TextCaps_0.1_val.json").write_bytes(_rows("val", {"00ba": ["a stop sign"]}))
    (root / "TextCaps_0.1_test.json").write_bytes(_rows("test", {"00ca": []}, captioned=False))
    write_zip(
        root / "train_val_images.zip",
        [
            ("train_images/", b""),
            ("train_images/00ab.jpg", jpeg(0, orientation=8)),
            ("train_images/00ba.jpg", jpeg(1)),
            ("train_images/00aa.jpg", jpeg(2)),
            ("train_images/00ad.jpg", jpeg(3, mode="L")),
            ("train_images/00ae.jpg", jpeg(4)),
            ("train_images/00af.jpg", jpeg(6)),  # neither split names it
        ],
    )
    write_zip(root / "test_images.zip", [("test_images/00ca.jpg", jpeg(5))])


EXPECTED = {
    "default": {
        "train": [
            ("00ab", "upright?"),
            ("00aa", 'a "Listerine" bottle ™'),
            ("00ad", "grey"),
            ("00ae", "!empty_caption"),
            ("00af", "!missing_caption"),
            ("00ac", "!missing_image"),
        ],
        "validation": [("00ba", "a stop sign")],
    }
}
