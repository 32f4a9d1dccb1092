"""img2dataset tars as pixparse/cc12m-wds has them, and what goes wrong in some."""

from pathlib import Path

from .archive import dumps, write_tar
from .photos import HTML, jpeg, truncated


def _facts(key: str, caption: str | None) -> bytes:
    return dumps(
        {
            "caption": caption,
            "url": f"http://example.org/{key}",
            "key": key,
            "status": "success",
            "width": 1,
            "height": 1,
            "original_width": 1024,
            "original_height": 768,
            "exif": "{}",
        }
    )


def make(root: Path) -> None:
    write_tar(
        root / "cc12m-train-0000.tar",
        [
            ("000000000.jpg", jpeg(0)),
            ("000000000.json", _facts("000000000", "x")),
            ("000000000.txt", b"<PERSON> &amp; the Red Car http://shop.com #12345"),
            ("000000003.txt", b"members in another order"),  # keys have gaps
            ("000000003.json", _facts("000000003", "x")),
            ("000000003.jpg", jpeg(1)),
            ("._000000004.jpg", b"resource fork"),
            ("000000004.JPG", jpeg(2)),
            ("000000004.json", b"{broken"),
            ("000000004.txt", b"upper case\n"),
            ("000000005.jpg", jpeg(3)),
            ("000000005.json", _facts("000000005", "Caption of the JSON")),
            ("000000006.jpg", jpeg(4)),
            ("000000006.json", _facts("000000006", None)),
        ],
    )
    write_tar(
        root / "cc12m-train-0001.tar",
        [
            ("000010000.jpg", jpeg(5)),
            ("000010000.txt", b""),
            ("000010001.jpg", truncated(jpeg(6))),
            ("000010001.txt", b"cut short"),
            ("000010002.txt", b"no image"),
            ("000010003.jpg", HTML),
            ("000010003.txt", b"an error page"),
            ("000010004.jpg", jpeg(7)),
            ("000010004.txt", b"once"),
            ("000010004.jpg", jpeg(8)),  # the same key again; a tar may hold it
            ("000010005.jpg", b""),
            ("000010005.txt", b"zero bytes"),
            ("000000000.jpg", jpeg(9, (200, 300))),
            ("000000000.txt", b"small"),
            ("000010006.jpg", jpeg(10)),
            ("000010006.txt", "日本語 only".encode()),
            ("000010007.jpg", jpeg(11)),
            ("000010007.txt", "図書館".encode()),  # nothing is left of it
        ],
    )
    (root / "_info.json").write_bytes(
        dumps({"splits": {"train": {"filenames": ["x.tar"], "shard_lengths": [9_999]}}})
    )


EXPECTED = {
    "default": {
        "train": [
            ("0000-000000000", "person the red car"),
            ("0000-000000003", "members in another order"),
            ("0000-000000004", "upper case"),
            ("0000-000000005", "caption of the json"),
            ("0000-000000006", "!missing_caption"),
            ("0001-000010000", "!empty_caption"),
            ("0001-000010001", "!undecodable"),
            ("0001-000010002", "!missing_image"),
            ("0001-000010003", "!undecodable"),
            ("0001-000010004", "once"),
            ("0001-000010004", "!duplicate_key"),
            ("0001-000010005", "!undecodable"),
            ("0001-000000000", "!too_small"),
            ("0001-000010006", "only"),
            ("0001-000010007", "!empty_caption"),
        ]
    }
}
