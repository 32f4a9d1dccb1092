"""One caption of several: the drawn one alone is read, by exact shares, the same whatever the ranks, the workers and the breaks."""

import gc
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from loader import as_webdataset, make_loader
from loader.counter_rng import keyed, uniform
from loader.draw import CAPTION
from loader.format import MANIFEST, Field
from precompute.shards.markers import manifest_of
from precompute.shards.output_folder import OutputFolder, write_file
from precompute.shards.unit_writer import SidecarRow, UnitWriter
from tests.support.binomial import assert_frequency

T, D = 3, 4
FIELDS = (
    Field("latents_32", "latents", "float16", (4, 4, 4)),
    Field("latents_32_flipped", "latents", "float16", (4, 4, 4)),
    Field("caption_latents", "caption_latents", "float16", (T, D), captions=5),
    Field("caption_latents_t5", "caption_latents", "float16", (None, D), captions=5),
    Field("caption_pooled", "caption_pooled", "float16", (D,), captions=5),
)
# Kinds of the captions of sample 0, 5, 10, ..., of 1, 6, 11, ... and so on.
KINDS = (
    ["human", "human", "human", "human", "human"],
    ["alt", "llava"],
    ["alt"],
    ["llava", "alt", "gpt", "llava"],
    ["gpt", "gpt"],
)
EPOCHS, SAMPLES = 10, 120


def states(sample: int, caption: int, tokens: int) -> np.ndarray:
    """Numbers that tell sample, caption and token."""
    return np.stack([np.array([sample, caption, token, 1], np.float16) for token in range(tokens)])


def tokens_of(sample: int, caption: int) -> int:
    return 1 + (sample + 2 * caption) % 4


def write(folder: Path, count: int = SAMPLES, units: int = 4, several: bool = True, first: int = 0) -> Path:
    folder.mkdir()
    names, recipe, markers = [field.name for field in FIELDS], {"dataset": {"path": folder.name}}, []
    fields = FIELDS if several else [Field(f.name, f.kind, f.dtype, f.shape) for f in FIELDS]
    for unit in range(units):
        writer = UnitWriter(OutputFolder(folder), unit, [*names, "txt", "json"], 1 << 20, "test")
        for n in range(first + unit * count // units, first + (unit + 1) * count // units):
            kinds = KINDS[n % 5][: None if several else 1]
            lengths = [tokens_of(n, caption) for caption in range(len(kinds))]
            captions = [f"{n} {caption}" for caption in range(len(kinds))]
            columns = {
                "caption_tokens": [T] * len(kinds),
                "caption_tokens_t5": lengths,
                "crop_32": [n, 0, n + 64, 64],
            }
            row = SidecarRow(
                f"k{n}",
                captions[0],
                100 + n,
                64,
                "made up",
                {"score": n / 4},
                [*captions, "not embedded"],
                [*kinds, "other"],
                columns,
            )
            if n % 7 == 3:
                writer.reject(SidecarRow(f"r{n}"), "too_small")
            pooled = np.stack([states(n, caption, 1)[0] for caption in range(len(kinds))])
            members: dict[str, Any] = {
                "latents_32.npy": np.full((4, 4, 4), n, np.float16),
                "latents_32_flipped.npy": np.full((4, 4, 4), -n, np.float16),
                "caption_latents.npy": np.concatenate([states(n, c, T) for c in range(len(kinds))]),
                "caption_latents_t5.npy": np.concatenate(
                    [states(n, c, lengths[c]) for c in range(len(kinds))]
                ),
                "caption_pooled.npy": pooled if several else pooled[0],
                "txt": captions[0].encode(),
                "json": json.dumps({"width": 100 + n, "height": 64, "crop": [n, 0, n + 64, 64]}).encode(),
            }
            writer.write(row, members)
        markers.append(writer.commit(recipe, fields, {"units": units}, {}))
        writer.discard()
    write_file(folder / MANIFEST, manifest_of(recipe, fields, markers).to_json().encode())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("captions") / "a")


def load(folder: Any, batch_size: int = 10, **options: Any) -> Any:
    options = {"pooled": True, "extras": ["caption", "caption_kind"], "flip_prob": 0.5, **options}
    return make_loader(folder, batch_size, resolution=32, **options)


def drawn(batches: Any) -> Iterator[tuple[int, int]]:
    """(sample, caption) of each; every member of a sample is of the same caption, and whole."""
    for batch in batches:
        for index, text in enumerate(batch["caption"]):
            sample, caption = map(int, text.split())
            assert abs(int(batch["image_latents"][index, 0, 0, 0])) == sample
            assert batch["caption_kind"][index] == KINDS[sample % 5][caption]
            assert np.array_equal(batch["caption_latents"][index, 0], states(sample, caption, T))
            length = tokens_of(sample, caption)
            assert np.array_equal(
                batch["caption_latents_t5"][index, 0, :length], states(sample, caption, length)
            )
            assert batch["caption_mask_t5"][index].sum() == length
            assert batch["caption_pooled"][index].tolist() == [sample, caption, 0, 1]
            yield sample, caption


def share(captions: Any, kinds: list[str], caption: int) -> Fraction:
    """What the docstring of the option says, in other words."""
    if captions == "random":
        return Fraction(1, len(kinds))
    weights = {kind: Fraction(str(captions.get(kind, 0))) for kind in set(kinds)}
    if not any(weights.values()):
        return Fraction(1, len(kinds))
    return weights[kinds[caption]] / sum(weights.values()) / kinds.count(kinds[caption])


@pytest.mark.parametrize(
    "captions",
    [
        "random",
        {"llava": 0.7, "alt": 0.3},
        {"llava": 1, "alt": 0},
        {"human": 2, "gpt": 1, "alt": 5},
        {"human": 1, "alt": 1e-18},
    ],
)
def test_shares_of_ten_epochs_are_those_that_were_asked_for(folder: Path, captions: Any) -> None:
    batches = load(folder, captions=captions, seed=3)
    found = [pair for _ in range(EPOCHS) for pair in drawn(batches)]
    assert Counter(sample for sample, _ in found) == dict.fromkeys(range(SAMPLES), EPOCHS)
    for group, kinds in enumerate(KINDS):
        mine = Counter(caption for sample, caption in found if sample % 5 == group)
        draws = EPOCHS * SAMPLES // 5
        for caption in range(len(kinds)):
            assert_frequency(mine[caption], draws, share(captions, kinds, caption))


def test_the_first_is_read_unless_another_is_asked_for(folder: Path) -> None:
    assert {caption for _, caption in drawn(load(folder))} == {0}


def test_the_drawn_ones_alone_are_read(folder: Path) -> None:
    for captions, most in (("first", 1.0), ("random", 1.0)):
        batches = load(folder, captions=captions, seed=1, text_encoders=[""], pooled=False)
        count = sum(len(batch["caption"]) for batch in batches)
        read = batches.stats()["bytes"] - count * (128 + 4 * 4 * 4 * 2)
        assert read == most * count * T * D * 2


def test_ranks_workers_and_breaks_change_no_caption(folder: Path) -> None:
    options = {"captions": {"llava": 0.5, "alt": 1, "human": 1}, "seed": 5, "caption_drop_prob": 0.0}
    whole = list(itertools.islice(drawn(load(folder, 12, **options)), SAMPLES))
    ranks = [load(folder, 6, rank=rank, world_size=2, **options) for rank in range(2)]
    turns = [list(drawn(batches)) for batches in ranks]
    mixed = [
        pair for start in range(0, SAMPLES // 2, 6) for rank in turns for pair in rank[start : start + 6]
    ]
    assert mixed == whole
    assert list(drawn(load(folder, 12, num_workers=2, **options))) == whole
    for done in (1, 4, 9):
        first = load(folder, 12, **options)
        began = list(drawn(itertools.islice(iter(first), done)))
        state = first.state_dict()
        rest = [load(folder, 4, rank=rank, world_size=3, **options) for rank in range(3)]
        for batches in rest:
            batches.load_state_dict(state)
        found = [list(drawn(batches)) for batches in rest]
        again = [
            pair for start in range(0, len(found[0]), 4) for rank in found for pair in rank[start : start + 4]
        ]
        assert began + again == whole


def test_the_caption_does_not_depend_on_other_draws(folder: Path) -> None:
    def captions(**options: Any) -> list[str]:
        return [
            text for batch in load(folder, captions="random", seed=2, **options) for text in batch["caption"]
        ]

    assert (
        captions()
        == captions(flip_prob=0.0)
        == captions(caption_drop_prob=0.5)
        == captions(text_encoders=["t5"], pooled=False)
    )
    positions = np.arange(SAMPLES)
    chance = uniform(keyed(2, CAPTION, 0, positions))
    expected = [
        int(u * len(KINDS[int(text.split()[0]) % 5])) for u, text in zip(chance, captions(), strict=True)
    ]
    assert [int(text.split()[1]) for text in captions()] == expected


def test_dropped_captions_are_zeros_and_not_read(folder: Path) -> None:
    batches = load(folder, captions="random", caption_drop_prob=0.5, seed=1)
    for batch in batches:
        for index, keep in enumerate(batch["drop_caption_mask"].tolist()):
            for name in ("caption_latents", "caption_latents_t5", "caption_pooled"):
                assert bool(batch[name][index].any()) == bool(keep), name
            assert keep or batch["caption_mask_t5"][index].all(), "attention over nothing would be NaN"


def test_a_mixture_with_shards_of_one_caption(folder: Path, tmp_path: Path) -> None:
    single = write(tmp_path / "single", count=30, units=2, several=False, first=200)
    batches = load([folder, single], weights=[1, 1], captions="random", seed=1)
    found = list(drawn(batches))
    assert {caption for sample, caption in found if sample >= 200} == {0}
    assert {caption for sample, caption in found if sample < 200} > {0, 1}


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ("last", "expected 'first', 'random', or weights"),
        ({"llava": -1}, "expected 'first', 'random', or weights"),
        ({"llava": 0}, "expected 'first', 'random', or weights"),
        ({"lava": 1}, "no caption of kind 'lava'; there are alt, gpt, human, llava"),
    ],
)
def test_what_cannot_be_is_told(folder: Path, captions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(folder, captions=captions)


def test_a_choice_where_there_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has one caption of a sample; make it with --max-captions"):
        load(write(tmp_path / "single", 10, 1, several=False), captions="random")


def test_a_sidecar_that_says_other_lengths_costs_substitutes(tmp_path: Path) -> None:
    damaged = write(tmp_path / "damaged", 10, 1)
    path = damaged / "train-00000.parquet"
    table = pq.read_table(path)
    lengths = [None if row is None else [2**30, *row[1:]] for row in table["caption_tokens_t5"].to_pylist()]
    at = table.column_names.index("caption_tokens_t5")
    pq.write_table(
        table.set_column(at, table.schema.field(at), pa.array(lengths, table.schema.field(at).type)), path
    )
    with pytest.raises(RuntimeError, match="does not hold the captions that the sidecar says"):
        next(iter(load(damaged, 2, on_error="raise")))


def test_extras_by_name(folder: Path) -> None:
    names = ["key", "size_conditioning", "width", "source", "score", "caption_kinds"]
    for flip in (0.0, 1.0):
        for batch in load(folder, extras=names, flip_prob=flip):
            for index, key in enumerate(batch["key"]):
                n = int(key[1:])
                assert (batch["width"][index], batch["source"][index]) == (100 + n, "made up")
                assert batch["score"][index] == n / 4
                assert batch["caption_kinds"][index] == [*KINDS[n % 5], "other"]
                left = 100 + n - (n + 64) if flip else n
                assert batch["size_conditioning"][index].tolist() == [64, 100 + n, 0, round(left / 2), 32, 32]
            assert batch["size_conditioning"].dtype == torch.float32
    with pytest.raises(
        ValueError, match=r"'scoer' is neither a column of the sidecars nor .* there are .*score"
    ):
        load(folder, extras=["scoer"])


def test_crops_of_shards_from_before_come_from_the_tar(tmp_path: Path) -> None:
    old = write(tmp_path / "old", 10, 1, several=False)
    path = old / "train-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["crop_32", "captions", "caption_kinds"]), path)
    batch = next(iter(load(old, 10, extras=["key", "size_conditioning", "caption_kind"], flip_prob=0.0)))
    for key, row in zip(batch["key"], batch["size_conditioning"].tolist(), strict=True):
        assert row == [64, 100 + int(key[1:]), 0, round(int(key[1:]) / 2), 32, 32]
    assert set(batch["caption_kind"]) == {""}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_gives_all_captions(folder: Path) -> None:
    for sample in as_webdataset(folder):
        n = int(sample["__key__"][1:])
        assert len(sample["caption_pooled.npy"]) == len(KINDS[n % 5])
    gc.collect()  # webdataset leaves its last file to the garbage collector
