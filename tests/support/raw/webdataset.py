"""Tars as people have them: img2dataset's, with folders, several captions, captions in the JSON, and one that breaks off."""

from pathlib import Path

from .archive import dumps, write_tar
from .photos import jpeg, png, webp


def make(root: Path) -> None:
    write_tar(
        root / "00000.tar",
        [
            ("000000000.jpg", jpeg(0)),
            ("000000000.txt", b"from the text file"),
            ("000000000.json", dumps({"caption": "from the json", "url": "http://x"})),
            ("deep/er/a b.png", png(1)),
            ("deep/er/a b.json", dumps({"prompt": ["one", "two"]})),
            ("000000002.webp", webp(2)),
            ("000000002.cls", b"7"),
            ("000000003.txt", b"no image"),
            ("x" * 120 + ".jpg", jpeg(3)),  # a GNU or pax long name
            ("x" * 120 + ".txt", b"a long name"),
        ],
    )
    write_tar(
        root / "00001.tar",
        [
            ("000000000.jpg", jpeg(4)),  # the key of the first tar again
            ("000000000.caption", b"\xef\xbb\xbfother suffix"),
            ("000000001.jpg", jpeg(5)),
            ("000000001.txt", b"never reached"),
        ],
    )
    whole = (root / "00001.tar").read_bytes()
    (root / "00001.tar").write_bytes(whole[: whole.index(b"000000001.jpg") + 5_000])
    write_tar(root / "val/00000.tar", [("000000000.jpg", jpeg(6)), ("000000000.txt", b"validation")])


EXPECTED = {
    "default": {
        "train": [
            ("00000-000000000", "from the text file"),
            ("00000-deep_er_a_b-d307e92b", "one"),
            ("00000-000000002", "!missing_caption"),
            ("00000-000000003", "!missing_image"),
            ("00000-" + "x" * 120, "a long name"),
            ("00001-000000000", "other suffix"),
            ("00001_tar_0-fd894976", "!bad_archive"),
        ],
        "validation": [("val_00000-000000000-b216240f", "validation")],
    }
}
