"""A base and three layers are read as what had been made at once, whatever is selected, drawn, mixed, fetched and dealt out together."""

import contextlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loader import make_loader
from precompute import pack, run
from tests.support.batches import all_same
from tests.support.faulty_server import serve
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg

TOYS: dict[str, Any] = {"dtype": "float32", "batch_size": 8, "num_threads": 1}
TEXT = ("toy?pooled", "second=toy?layer=-2")
PARTS = ("base", "second", "large", "new")
PICTURES = {"plain": 18, "other": 12, "buckets": 30}  # of each dataset
EXTRAS = ["key", "caption", "caption_kind", "size_conditioning", "score"]
OPTIONS: dict[str, list[Any]] = {
    "datasets": [["plain"], ["buckets"], ["plain", "other"]],
    "remote": [(), (), (), PARTS, ("large", "new")],
    "where": [None, "score >= 1", "score >= 1 and width < 300 or caption like '%1 of%'"],
    "subset": [None, None, (0, 0.9)],
    "captions": ["first", "random", {"new": 3, "caption": 1}, {"new": 1}],
    "resolution": [112, 128],
    "world_size": [1, 2, 3],
    "num_workers": [*[0] * 9, 2],
    "shuffle": [True, True, False],
    "caption_drop_prob": [0.0, 0.3],
}


def combinations(count: int) -> list[dict[str, Any]]:
    """Each value of each option comes as often as the others, or once more; which go together is a matter of chance."""
    rng = random.Random(20)
    columns = [(values * count)[:count] for values in OPTIONS.values()]
    for column in columns:
        rng.shuffle(column)
    return [dict(zip(OPTIONS, row, strict=True)) for row in zip(*columns, strict=True)]


def write_raw(folder: Path, name: str) -> list[str]:
    """Tars of pictures of two shapes, one of them no image, with a caption and a score each; lines with captions of another model."""
    lines = []
    for first in range(0, PICTURES[name], 9):
        members = []
        for n in range(first, min(first + 9, PICTURES[name])):
            image = b"<html>" if n == 5 else jpeg(n, (384, 256) if n % 2 else (256, 256))
            facts = {"caption": f"own {n} of {name}", "score": n / 2}
            members += [(f"{n:03d}.jpg", image), (f"{n:03d}.json", json.dumps(facts).encode())]
            texts = [f"new {n} {number}" for number in range(n % 3)]
            lines += [json.dumps({"key": f"{name}{first}-{n:03d}", "captions": texts})] if texts else []
        write_tar(folder / "raw" / f"{name}{first}.tar", members)
    return lines


def grow(folder: Path, resolutions: tuple[int, ...], buckets: int | None) -> None:
    """`whole`, made at once: two text encoders, captions of another model, and resolutions; and the same as a base and three layers."""
    new: dict[str, Any] = {"captions": (f"new={folder.parent / 'new.jsonl'}",)}
    made: dict[str, Any] = {"vae": "toy", "data_dir": folder / "raw", "buckets": buckets, **TOYS}
    beside: dict[str, Any] = {"beside": str(folder / "base"), "vae": None, **TOYS}
    both: dict[str, Any] = {"captions_order": "behind", "max_captions": 3, "resolutions": resolutions}
    source = "builders/webdataset"
    run.run(run.Config(source, folder / "whole", text_encoder=TEXT, **made, **new, **both))
    run.run(run.Config(source, folder / "base", text_encoder=TEXT[:1], resolutions=(112,), **made))
    run.run(run.Config(output=folder / "second", text_encoder=TEXT[1:], **beside))
    run.run(run.Config(output=folder / "large", resolutions=(128,), data_dir=folder / "raw", **beside))
    run.run(run.Config(output=folder / "new", text_encoder=TEXT, max_captions=2, **new, **beside))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("grown")
    lines = [line for name in PICTURES for line in write_raw(root / name, name)]
    (root / "new.jsonl").write_text("\n".join(lines))
    for name in PICTURES:
        # Made at once, two resolutions of a bucket divide the pictures into more groups than the first alone.
        grow(root / name, *(((112,), 16) if name == "buckets" else ((112, 128), None)))
    return root


@pytest.fixture(scope="module")
def urls(root: Path) -> Iterator[dict[Path, str]]:
    """One for each base and layer."""
    with contextlib.ExitStack() as stack:
        folders = [root / name / part for name in PICTURES for part in PARTS]
        yield {folder: stack.enter_context(serve(folder)).url for folder in folders}


def read(path: Any, options: dict[str, Any]) -> list[Any]:
    """The first batches of each rank; and those that follow two of the first one's, where a world of another size goes on."""

    def loader(world_size: int, rank: int) -> Any:
        given = {**options, "world_size": world_size, "rank": rank}
        return make_loader(path, 2, extras=EXTRAS, pooled=True, seed=7, shuffle_window=8, **given)

    found, world_size = [], options["world_size"]
    for rank in range(world_size):
        batches = loader(world_size, rank)
        found += itertools.islice(batches, 8)
        batches.close()
    batches = loader(world_size, 0)
    list(itertools.islice(batches, 2))
    state = json.loads(json.dumps(batches.state_dict()))
    batches.close()
    batches = loader(3 - min(world_size, 2), 0)
    batches.load_state_dict(state)
    found += itertools.islice(batches, 4)
    batches.close()
    return found


@pytest.mark.parametrize(
    "options", combinations(20), ids=lambda options: "-".join(map(str, options.values()))
)
def test_base_and_layers_are_read_as_what_is_made_at_once(
    root: Path, urls: dict[Path, str], options: dict[str, Any]
) -> None:
    names, remote, bucketed = options["datasets"], options["remote"], "buckets" in options["datasets"]
    options = {name: value for name, value in options.items() if name not in ("datasets", "remote")}
    options |= {"resolution": 112} if bucketed else {}
    parts = [part for part in PARTS if not (bucketed and part == "large")]
    joined = [
        tuple(urls[root / name / part] if part in remote else root / name / part for part in parts)
        for name in names
    ]
    found, expected = read(joined, options), read([root / name / "whole" for name in names], options)
    assert len(found) == len(expected) > options["world_size"]
    assert all_same(found, expected)


def test_pictures_of_a_layer_beside_buckets_have_their_own_size(root: Path, tmp_path: Path) -> None:
    """It is eight times the latents', read beside the base and packed with it."""
    parts = (root / "buckets" / "base", root / "buckets" / "large")
    pack.run(pack.Config(tuple(map(str, parts)), tmp_path / "packed", shuffle=1))
    for path in (parts, tmp_path / "packed"):
        shapes = set()
        for resolution in (112, 128):
            batches = make_loader(path, 2, resolution=resolution, extras=EXTRAS)
            for batch in batches:
                height, width = (8 * side for side in batch["image_latents"].shape[2:])
                assert batch["size_conditioning"][:, 4:].tolist() == [[height, width]] * 2
                shapes.add((height, width))
            batches.close()
        assert len(shapes) == 4
