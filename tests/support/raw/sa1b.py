"""SA-1B's tars, its list of links and the LLaVA captions archive, which misses some and holds others."""

from pathlib import Path

from .archive import dumps, write_tar, write_tgz
from .photos import jpeg


def _masks(number: int) -> tuple[str, bytes]:
    image = {"image_id": number, "width": 1, "height": 1, "file_name": f"sa_{number}.jpg"}
    return f"./sa_{number}.json", dumps(
        {"image": image, "annotations": [{"bbox": [0.0, 0.0, 1.0, 1.0], "area": 1}] * 9}
    )


def make(root: Path) -> None:
    write_tar(
        root / "sa_000020.tar",
        [
            ("./", b""),
            ("./sa_1010.jpg", jpeg(0, (400, 300))),
            _masks(1010),
            _masks(1011),
            ("./sa_1011.JPG", jpeg(1, (400, 300))),
            ("./sa_1012.jpg", jpeg(2)),  # no caption, no json
            _masks(1013),  # no image
        ],
    )
    write_tar(
        root / "sa_000138.tar",
        [("./sa_1543967.jpg", jpeg(3)), _masks(1543967), ("./sa_1543970.jpg", jpeg(4)), _masks(1543970)],
    )
    write_tgz(
        root / "SA1B_caption.tar.gz",
        [
            ("all/sa_1543967.txt", "The image features a café.\n".encode()),
            ("sa_1011.txt", b"\xef\xbb\xbfThe image features a cup."),
            ("sa_9.txt", b"of a tar that nobody chose"),
            ("sa_1010.txt", b" The image features an astronaut. "),
            ("sa_1543970.txt", b""),
            ("sa_1013.txt", b"The image is gone."),
        ],
    )
    link = "https://scontent.example.org/m1/{}?ccb=10-5&oh=00&oe=67A68F58&_nc_sid=0"
    rows = [
        "file_name\tcdn_link",
        *(f"{name}\t{link.format(name)}" for name in ("sa_000138.tar", "sa_000020.tar", "sa_images_ids.txt")),
    ]
    (root / "links.txt").write_bytes("\r\n".join(rows).encode())


def options(root: Path) -> dict[str, str]:
    return {"links": str(root / "links.txt")}


EXPECTED = {
    "default": {
        "train": [
            ("sa_1010", "The image features an astronaut."),
            ("sa_1011", "The image features a cup."),
            ("sa_1012", "!missing_caption"),
            ("sa_1013", "!missing_image"),
            ("sa_1543967", "The image features a café."),
            ("sa_1543970", "!empty_caption"),
        ]
    }
}
