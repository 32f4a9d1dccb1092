"""Rows per CPU second and memory of the builders, beside the plain loop over the same archives.

    python benchmarks/build.py --records 20000 --folder /tmp/build-benchmark

Each measurement is a process of its own. The plain loop opens the archive with `tarfile` or `zipfile`, reads every member and parses
the JSON, and does nothing else: no gate, no cleaning, no accounting. The builders run as a user runs them, through
`load_dataset(streaming=True)`, bytes passed through; what they keep beside the cache is made anew each time. Bars: at least 70 % of
the plain loop's rows a second; memory flat in the number of records; with max_image_size=512 at least 2.5 times the reference's way
(full decode, bicubic resize, JPEG).

    python benchmarks/build.py --join 10000000 --folder /tmp/build-benchmark

joins that many generated captions with SA-1B's image names, through the builder, in one process. Bar: at most 1 GiB.
"""

import argparse
import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pyarrow.parquet  # noqa: E402

from tests.support.raw.archive import dumps, write_tar, write_tgz, write_zip  # noqa: E402
from tests.support.raw.photos import encode, photo  # noqa: E402

ROWS_PER_ARCHIVE = 5000
CAPTIONS = (
    "A man with a red helmet on a small moped on a dirt road. ",
    "Young woman in a white dress with flowers in her hand",
    "A vintage pickup truck, restored, parked outside of a diner",
    "a tabby cat, close-up, looking past the camera",
)
LAYOUTS = {"tar": "cc12m", "zip": "coco", "zips": "diffusiondb", "tgz": "journeydb"}

# --- the archives, generated once ---------------------------------------------------------------------------------------------------


def photographs(count: int, quality: int) -> Iterator[bytes]:
    """JPEGs of 640x480, twenty different ones in turn."""
    distinct = [encode(photo(number, (640, 480)), quality=quality) for number in range(20)]
    return (distinct[number % len(distinct)] for number in range(count))


def make(layout: str, root: Path, count: int, quality: int) -> None:
    {"tar": make_tar, "zip": make_zip, "zips": make_zips, "tgz": make_tgz}[layout](root, count, quality)


def make_tar(root: Path, count: int, quality: int) -> None:
    def members(images: Iterable[bytes], start: int) -> Iterator[tuple[str, bytes]]:
        for number, image in enumerate(images, start):
            caption = CAPTIONS[number % len(CAPTIONS)]
            facts = {
                "caption": caption,
                "url": f"http://example.org/{number}",
                "width": 640,
                "height": 480,
                "exif": "{}",
            }
            yield f"{number:09d}.jpg", image
            yield f"{number:09d}.txt", caption.encode()
            yield f"{number:09d}.json", dumps(facts)

    for archive, start in enumerate(range(0, count, ROWS_PER_ARCHIVE)):
        images = photographs(min(ROWS_PER_ARCHIVE, count - start), quality)
        write_tar(root / f"cc12m-train-{archive:04d}.tar", members(images, start))


def make_zip(root: Path, count: int, quality: int) -> None:
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(count)]
    write_zip(
        root / "val2014.zip",
        ((f"val2014/{name}", image) for name, image in zip(names, photographs(count, quality), strict=True)),
    )
    images = [
        {"id": number, "file_name": name, "height": 480, "width": 640} for number, name in enumerate(names)
    ]
    annotations = [
        {"image_id": number, "id": 5 * number + turn, "caption": CAPTIONS[(number + turn) % len(CAPTIONS)]}
        for number in range(count)
        for turn in range(5)
    ]
    tree = dumps({"images": images, "annotations": annotations})
    write_zip(
        root / "annotations_trainval2014.zip",
        [("annotations/captions_val2014.json", tree)],
        zipfile.ZIP_DEFLATED,
    )


def make_zips(root: Path, count: int, quality: int) -> None:
    table = []
    for part, start in enumerate(range(0, count, 1000), 1):
        names = [f"{part:06d}-{number:04d}.png" for number in range(min(1000, count - start))]
        prompts = {
            name: {"p": CAPTIONS[number % 4], "se": number, "c": 7.0, "st": 50, "sa": "k_lms"}
            for number, name in enumerate(names)
        }
        members = [
            *zip(names, photographs(len(names), quality), strict=True),
            (f"part-{part:06d}.json", dumps(prompts)),
        ]
        write_zip(root / f"images/part-{part:06d}.zip", members)
        table += [
            {"image_name": name, "part_id": part, "image_nsfw": 0.1, "prompt_nsfw": 0.1} for name in names
        ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), root / "metadata.parquet")


def make_tgz(root: Path, count: int, quality: int) -> None:
    for archive, start in enumerate(range(0, count, ROWS_PER_ARCHIVE)):
        images = enumerate(photographs(min(ROWS_PER_ARCHIVE, count - start), quality))
        write_tgz(
            root / f"data/train/imgs/{archive:03d}.tgz",
            ((f"{archive:03d}/{number}.jpg", image) for number, image in images),
        )
    lines = (
        dumps(
            {
                "img_path": f"./{number // ROWS_PER_ARCHIVE:03d}/{number % ROWS_PER_ARCHIVE}.jpg",
                "prompt": CAPTIONS[number % 4],
            }
        )
        for number in range(count)
    )
    write_tgz(
        root / "data/train/train_anno_realease_repath.jsonl.tgz",
        [("train_anno_realease_repath.jsonl", b"\n".join(lines))],
    )


# --- the two ways to read them ---------------------------------------------------------------------------------------------------------


def plain_tar(root: Path) -> int:
    rows = 0
    for path in sorted(root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                data = tar.extractfile(info).read()  # type: ignore[union-attr]
                if info.name.endswith(".json"):
                    json.loads(data)
                    rows += 1
    return rows


def plain_zip(root: Path) -> int:
    with zipfile.ZipFile(root / "annotations_trainval2014.zip") as archive:
        tree = json.loads(archive.read("annotations/captions_val2014.json"))
    captions: dict[int, list[str]] = {}
    for annotation in tree["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    with zipfile.ZipFile(root / "val2014.zip") as archive:
        return sum(bool(archive.read(info)) for info in archive.infolist())


def plain_zips(root: Path) -> int:
    rows = 0
    for path in sorted((root / "images").iterdir()):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                data = archive.read(info)
                if info.filename.endswith(".json"):
                    rows += len(json.loads(data))
    return rows


def plain_tgz(root: Path) -> int:
    prompts = {}
    with tarfile.open(root / "data/train/train_anno_realease_repath.jsonl.tgz") as tar:
        for line in tar.extractfile(tar.next()):  # type: ignore[arg-type,union-attr]
            record = json.loads(line)
            prompts[record["img_path"]] = record["prompt"]
    rows = 0
    for path in sorted((root / "data/train/imgs").iterdir()):
        with tarfile.open(path) as tar:
            for info in tar:
                rows += bool(tar.extractfile(info).read() and prompts[f"./{info.name}"])  # type: ignore[union-attr]
    return rows


def stream(layout: str, root: Path) -> Any:
    import datasets

    import builders

    split, cleaning = "validation" if layout == "zip" else "train", {"caption_cleaning": "light"}
    rows = builders.load_dataset(
        f"builders/{LAYOUTS[layout]}",
        "2m" if layout == "zips" else None,
        split=split,
        data_dir=str(root),
        streaming=True,
        cache_dir=str(root / "cache"),
        **cleaning,
    )
    return rows.cast_column("image", datasets.Image(decode=False))


PLAIN: dict[str, Callable[[Path], int]] = {
    "tar": plain_tar,
    "zip": plain_zip,
    "zips": plain_zips,
    "tgz": plain_tgz,
}


def measure(way: str, layout: str, root: Path) -> None:
    """Prints rows, CPU seconds from the first read on, and peak MiB; wall time would measure the neighbours too."""
    rows = stream(layout, root) if way == "builders" else ()
    gc.collect()  # what the imports left is no part of either way
    start = time.process_time()
    count = sum(1 for _ in rows) if way == "builders" else PLAIN[layout](root)
    seconds = time.process_time() - start
    print(count, seconds, peak_memory())


def peak_memory() -> float:
    """MiB, of this program alone: ru_maxrss would count what the parent had at the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def measured(way: str, layout: str, root: Path) -> tuple[float, float]:
    """Rows a CPU second, the best of three, and peak MiB."""
    runs = []
    for _ in range(3):
        rows, seconds, memory = in_a_process(way, layout, root)
        runs.append((rows / seconds, memory))
    return max(rate for rate, _ in runs), max(memory for _, memory in runs)


def in_a_process(way: str, layout: str, root: Path) -> list[float]:
    """What it prints; the memory is its own then."""
    result = subprocess.run(
        [sys.executable, __file__, "--measure", way, layout, str(root)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return [float(word) for word in result.stdout.split()]


# --- the join -------------------------------------------------------------------------------------------------------------------------------


def make_join(root: Path, count: int) -> None:
    """SA-1B with one image of the last caption, and `count` captions, in no order of their numbers."""
    text = "The image features a man beside a bicycle on a street. " * 5
    names = (f"sa_{number * 7919 % count}.txt" for number in range(count))
    write_tgz(root / "SA1B_caption.tar.gz", ((name, f"{name} {text}".encode()) for name in names))
    write_tar(root / "sa_000000.tar", [(f"./sa_{count - 1}.jpg", next(photographs(1, 90)))])


def measure_join(root: Path, count: int) -> None:
    """Prints seconds, peak MiB and MiB on disk."""
    import builders

    cache = root / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    start = time.monotonic()
    rows = builders.load_dataset(
        "builders/sa1b", split="train", data_dir=str(root), streaming=True, cache_dir=str(cache)
    )
    (row,) = rows
    assert row["caption"].startswith(f"sa_{count - 1}.txt The image"), row
    size = sum(path.stat().st_size for path in cache.rglob("*.sqlite"))
    print(time.monotonic() - start, peak_memory(), size / 2**20)
    shutil.rmtree(cache)


def join(root: Path, count: int) -> bool:
    """Whether it took at most 1 GiB."""
    if not (root / "made").exists():
        make_join(root, count)
        (root / "made").touch()
    seconds, memory, size = in_a_process("join", str(count), root)
    print(
        f"join of {count:,} captions: {seconds:,.0f} s, {memory:,.0f} MiB of memory, {size:,.0f} MiB of disk"
    )
    return memory <= 1024


# --- shrinking ----------------------------------------------------------------------------------------------------------------------------


def reference_shrink(data: bytes, shorter_edge: int) -> bytes:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = shorter_edge / min(image.size)
    out = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
        out, "JPEG"
    )
    return out.getvalue()


def shrink_rate(shrink: Callable[[bytes, int], bytes], images: list[bytes]) -> float:
    start = time.process_time()
    for _ in range(5):
        for data in images:
            shrink(data, 512)
    return 5 * len(images) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--records",
        type=int,
        default=20_000,
        help="of the large set; the small one has a quarter of it",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build-benchmark.tmp"),
        help="for the archives, about 200 kB a record",
    )
    parser.add_argument(
        "--quality",
        type=int,
        default=97,
        help="of the JPEGs: 97 gives 120 kB each (COCO's mean is 163 kB), 87 gives 53 kB",
    )
    parser.add_argument(
        "--join",
        type=int,
        metavar="COUNT",
        help="only this: join so many captions; 10,000,000 take about 2 GB of disk and a while",
    )
    parser.add_argument("--measure", nargs=3, metavar=("WAY", "LAYOUT", "ROOT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        way, layout, root = options.measure
        if way == "join":
            measure_join(Path(root), int(layout))
        else:
            measure(way, layout, Path(root))
        return
    if options.join:
        if not join(options.folder / f"join-{options.join}", options.join):
            sys.exit("more than 1 GiB of memory")
        return

    counts = (max(1, options.records // 4), options.records)
    print(
        f"{'layout':8}{'builder':12}{'records':>9}{'plain rows/s':>14}{'ours rows/s':>13}{'ratio':>7}{'plain MiB':>11}{'ours MiB':>10}"
    )
    for layout, name in LAYOUTS.items():
        for count in counts:
            root = options.folder / f"{layout}-{count}-{options.quality}"
            if not (root / "made").exists():
                make(layout, root, count, options.quality)
                (root / "made").touch()
            plain, plain_memory = measured("plain", layout, root)
            ours, memory = measured("builders", layout, root)
            print(
                f"{layout:8}{name:12}{count:9,}{plain:14,.0f}{ours:13,.0f}{ours / plain:7.2f}{plain_memory:11.0f}{memory:10.0f}",
                flush=True,
            )

    from builders.core.images import shrink

    images = [encode(photo(number, (2250, 1500)), quality=90) for number in range(4)]
    reference, ours = shrink_rate(reference_shrink, images), shrink_rate(shrink, images)
    print(
        f"\nshrink 2250x1500 to 512: reference {reference:.1f} images/s, ours {ours:.1f} images/s, ratio {ours / reference:.2f}"
    )


if __name__ == "__main__":
    main()
