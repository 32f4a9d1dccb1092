"""A folder and the layers beside it are read as the dataset that they would be, had all been made at once."""

import contextlib
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from loader import FormatError, LatentDataset, as_webdataset, make_loader
from loader.format import MANIFEST
from tests.support.batches import all_same
from tests.support.faulty_server import Server, serve
from tests.support.keyed_shards import FIELDS, write_layer, write_shards

SIZES = [9, 4, 0, 8, 7]
BASE = [field for field in FIELDS if field.name in ("moments_256", "moments_256_flipped", "caption_latents")]
LOST = {"k000004": "t5", "k000012": "big", "k000022": "big", "k000024": "t5", "k000023": "both"}
OPTIONS: dict[str, Any] = {"resolution": 256, "extras": ["key", "caption"], "seed": 1, "shuffle_window": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`, made at once; `base`, and beside it `t5` and `big`, which lack some samples each."""
    folder = tmp_path_factory.mktemp("layers")
    write_shards(folder / "whole", SIZES)
    base = write_shards(folder / "base", SIZES, fields=BASE)
    lost = {name: [key for key, of in LOST.items() if of in (name, "both")] for name in ("t5", "big")}
    write_layer(folder / "t5", base, ["caption_latents_t5", "caption_pooled"], lost["t5"])
    write_layer(folder / "big", base, ["latents_512"], lost["big"])
    return folder


@pytest.fixture(scope="module")
def kept(folder: Path) -> list[str]:
    """Keys of the samples that are whole in all."""
    return [key for batch in make_loader(folder / "whole", 1, **{**OPTIONS, "shuffle": False}) for key in batch["key"]
            if key not in LOST]  # fmt: skip


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[dict[str, Server]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(serve(folder / name)) for name in ("base", "t5", "big")}


def tars_asked(server: Server) -> list[str]:
    return [path for path, _, _ in server.requests if path.endswith(".tar")]


def taken(path: Any, batch_size: int, count: int | None = None, **options: Any) -> list[Any]:
    batches = make_loader(path, batch_size, **{**OPTIONS, **options})
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


COMBINATIONS = [
    {"resolution": resolution, "pooled": pooled, "world_size": world, "num_workers": workers, "subset": subset,
     "caption_drop_prob": 0.3, "shuffle": shuffle}
    for resolution, pooled, world, workers, subset, shuffle in random.Random(5).sample(
        list(itertools.product([256, 512], [False, True], [1, 2, 3], [0, 0, 0, 2], [None, (0, 0.7)], [True, False])), 8
    )
]  # fmt: skip


@pytest.mark.parametrize("options", COMBINATIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_joined_is_made_at_once_bit_for_bit(folder: Path, kept: list[str], options: dict[str, Any]) -> None:
    joined = (folder / "base", folder / "t5", folder / "big")
    for rank in range(options["world_size"]):
        expected = taken(folder / "whole", 2, keys=kept, rank=rank, **options)
        found = taken(joined, 2, rank=rank, **options)
        assert len(found) == len(expected) > 0
        assert all_same(found, expected)


def test_the_state_goes_on_in_another_world(folder: Path, kept: list[str]) -> None:
    joined = (folder / "base", folder / "t5", folder / "big")
    batches = make_loader(joined, 2, world_size=2, rank=0, **OPTIONS)
    for _ in zip(range(3), batches, strict=False):
        pass
    state = json.loads(json.dumps(batches.state_dict()))
    batches.close()
    other = make_loader(joined, 4, **OPTIONS)
    other.load_state_dict(state)
    rest = [key for batch in other for key in batch["key"]]
    whole = [key for batch in taken(folder / "whole", 4, keys=kept) for key in batch["key"]]
    assert rest == whole[12:]
    with pytest.raises(ValueError, match="another order of samples"):
        make_loader(joined[:2], 4, **OPTIONS).load_state_dict(state)


@pytest.mark.parametrize("remote", ["base", "t5", "both"])
def test_remote_and_local_parts_mix(folder: Path, servers: dict[str, Server], remote: str) -> None:
    paths = tuple(servers[name].url if remote in (name, "both") else folder / name for name in ("base", "t5"))
    expected = taken((folder / "base", folder / "t5"), 4)
    assert all_same(taken(paths, 4, num_workers=2 if remote == "both" else 0), expected)


def test_a_part_that_is_not_read_is_not_fetched(servers: dict[str, Server]) -> None:
    for server in servers.values():
        server.requests.clear()
    taken(tuple(server.url for server in servers.values()), 4, text_encoders=["t5"], resolution=512)
    assert not tars_asked(servers["base"])
    assert len(set(tars_asked(servers["t5"]))) == len(tars_asked(servers["t5"])) == 4


def test_a_cache_just_large_enough_fetches_each_tar_once(folder: Path, servers: dict[str, Server]) -> None:
    joined = (servers["base"].url, servers["t5"].url)
    with pytest.raises(ValueError, match="cache_limit=1: ") as refused:
        make_loader(joined, 4, cache_limit=1, **OPTIONS)
    limit = int(str(refused.value).split("it takes ")[1].split(" bytes")[0])
    for server in servers.values():
        server.requests.clear()
    found = taken(joined, 4, cache_limit=limit)
    assert all_same(found, taken((folder / "base", folder / "t5"), 4))
    assert len(tars_asked(servers["base"])) == len(tars_asked(servers["t5"])) == 4


def test_conditions_work_across_the_parts(folder: Path, kept: list[str]) -> None:
    joined = (folder / "base", folder / "t5", folder / "big")
    some = sorted(kept)[::2]
    keys = [
        key
        for batch in taken(joined, 1, where="key <> 'k000001'", keys=[*some, "k000004"])
        for key in batch["key"]
    ]
    assert sorted(keys) == [key for key in some if key != "k000001"]


def test_in_a_mixture(folder: Path, tmp_path: Path) -> None:
    other = write_shards(tmp_path / "other", [8, 8], prefix="m", fields=BASE)
    layer = write_layer(tmp_path / "layer", other, ["caption_latents_t5", "caption_pooled"])
    batches = taken([(folder / "base", folder / "t5"), (other, layer)], 4, 6, weights=[1, 1])
    keys = [key for batch in batches for key in batch["key"]]
    assert sum(key.startswith("m") for key in keys) == len(keys) / 2
    with pytest.raises(ValueError, match="of different recipes"):
        make_loader([(folder / "base", folder / "t5"), other], 4, **OPTIONS)


def test_the_empty_caption_comes_from_the_part_that_has_the_encoder(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*t5/null_caption\.npz"):
        taken(
            (folder / "base", folder / "t5"), 2, caption_drop_prob=0.5, dropped="null", text_encoders=["t5"]
        )
    np.savez(folder / "t5" / "null_caption.npz", caption_latents_t5=np.full((2, 6), 7, np.float16))
    (batch,) = taken(
        (folder / "base", folder / "t5"), 2, 1, caption_drop_prob=1.0, dropped="null", text_encoders=["t5"]
    )
    assert (batch["caption_latents_t5"] == 7).all()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_joins_them_too(folder: Path, kept: list[str]) -> None:
    found = list(as_webdataset((folder / "base", folder / "t5", folder / "big")))
    assert [sample["__key__"] for sample in found] == kept
    assert all(
        {"moments_256.npy", "caption_latents_t5.npy", "latents_512.npy", "txt"} <= sample.keys()
        for sample in found
    )
    alone = webdataset.WebDataset(
        str(folder / "t5" / "train-00000.tar"), shardshuffle=False, empty_check=False
    )
    assert [sample["__key__"] for sample in alone] == [k for k in sorted(kept) if k < "k000010"]


# --- what does not belong together ---


def refused(paths: tuple[Any, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        LatentDataset(paths, 2, **OPTIONS)
    assert "\n" not in str(error.value)


def test_parts_that_do_not_belong_together_are_named(folder: Path, tmp_path: Path) -> None:
    base, t5 = folder / "base", folder / "t5"
    other = write_shards(tmp_path / "other", SIZES, prefix="o", fields=BASE)
    refused((other, t5), "t5 is a layer of other shards")
    refused((base, other), "other is no layer; make it by a run with --beside")
    refused((t5, folder / "big"), "t5 is a layer: name what it was made beside")
    refused((base, t5, t5), "both have caption_latents_t5")
    refused((folder, t5), "no manifest.json")
    clash = write_layer(tmp_path / "clash", base, ["caption_latents"])
    refused((base, clash), "base and .*clash both have caption_latents; leave one")
    refused((base, write_layer(tmp_path / "half", base, ["latents_512"], units=2)), "half lacks 3 of 5 units")


def test_a_base_that_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    base = write_shards(tmp_path / "base", [3, 3], fields=BASE)
    layer = write_layer(tmp_path / "layer", base, ["latents_512"])
    write_shards(base, [3, 4], fields=BASE)
    refused((base, layer), "base has changed since the layer .*layer was made")


def test_a_layer_with_other_rows_in_a_shard_costs_substitutes(folder: Path, tmp_path: Path) -> None:
    base = write_shards(tmp_path / "base", [4, 4], fields=BASE)
    layer = write_layer(tmp_path / "layer", base, ["latents_512"])
    stranger = write_layer(
        tmp_path / "stranger", write_shards(tmp_path / "b", [4, 4], prefix="s", fields=BASE), ["latents_512"]
    )
    for suffix in ("tar", "parquet"):
        (layer / f"train-00001.{suffix}").write_bytes((stranger / f"train-00001.{suffix}").read_bytes())
    keys = [key for batch in taken((base, layer), 2, resolution=512) for key in batch["key"]]
    assert set(keys) <= {f"k{n:06d}" for n in range(1, 5)}


def test_a_layer_that_claims_what_the_base_has_not_is_refused(folder: Path, tmp_path: Path) -> None:
    base = write_shards(tmp_path / "base", [4, 4], fields=BASE)
    layer = write_layer(tmp_path / "layer", base, ["latents_512"])
    manifest = json.loads((layer / MANIFEST).read_text())
    manifest["splits"]["train"]["plan"]["base"] = ["nonsense"]
    (layer / MANIFEST).write_text(json.dumps(manifest))
    refused((base, layer), "layer is no layer")
    assert issubclass(FormatError, ValueError)
