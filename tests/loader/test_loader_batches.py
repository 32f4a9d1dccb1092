"""What is in a batch: the right values, computed here by hand from the arrays that were written."""

import errno
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loader import DataError, LatentDataset, make_loader, noise
from loader.batch import Work
from loader.format import Field
from loader.order import ATTEMPTS
from tests.support.keyed_shards import FIELDS, SCALE, D, T, arrays, write_shards


def one_epoch(path: Path, batch_size: int = 10, **options: Any) -> list[dict[str, Any]]:
    options = {
        "resolution": 256,
        "text_encoders": [""],
        "extras": ["key", "caption"],
        "flip_prob": 0,
        **options,
    }
    return list(LatentDataset(path, batch_size, **options))


def test_batch_has_the_documented_keys_shapes_and_dtypes(shards: Path) -> None:
    batch = next(iter(make_loader(shards, 8, resolution=256, text_encoders=[""])))
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "image_latents": ((8, 4, 4, 4), torch.float16),
        "caption_latents": ((8, 1, T, D), torch.float16),
        "drop_caption_mask": ((8,), torch.float32),
    }


def test_latents_are_mean_plus_std_times_noise_scaled(shards: Path) -> None:
    for number, batch in enumerate(one_epoch(shards, seed=7)):
        for index, key in enumerate(batch["key"]):
            mean, std = np.split(arrays(key)["moments_256"].astype(np.float32), 2)
            deviates = noise(7, 0, number * 10 + index, (4, 4, 4))
            expected = ((mean + std * deviates) * np.float32(SCALE)).astype(np.float16)
            assert np.array_equal(batch["image_latents"][index], expected)  # to the bit, on any CPU
            assert batch["caption"][index] == f"a picture of {key}"
            assert np.array_equal(batch["caption_latents"][index, 0], arrays(key)["caption_latents"])


def test_posterior_mean_has_no_noise(shards: Path) -> None:
    for batch in one_epoch(shards, posterior="mean"):
        for index, key in enumerate(batch["key"]):
            expected = arrays(key)["moments_256"][:4].astype(np.float32) * np.float32(SCALE)
            assert np.array_equal(batch["image_latents"][index], expected.astype(np.float16))


def test_shift_and_per_channel_statistics(tmp_path: Path) -> None:
    scale, shift = (0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0)
    field = Field("moments_256", "moments", "float16", (8, 4, 4), scale, shift)
    path = write_shards(tmp_path / "a", [8], fields=[field])
    batch = one_epoch(path, 8, posterior="mean", text_encoders=None)[0]
    for index, key in enumerate(batch["key"]):
        mean = arrays(key)["moments_256"][:4].astype(np.float32)
        expected = (mean - np.reshape(shift, (4, 1, 1))) * np.reshape(scale, (4, 1, 1))
        assert np.allclose(batch["image_latents"][index], expected, rtol=2e-3, atol=1e-3)


def test_latents_fields_are_given_as_they_are(shards: Path) -> None:
    for batch in one_epoch(shards, resolution=512):
        for index, key in enumerate(batch["key"]):
            assert np.array_equal(batch["image_latents"][index], arrays(key)["latents_512"])


def test_dropped_captions_are_zero_and_not_read(shards: Path) -> None:
    batches = one_epoch(shards, caption_drop_prob=0.5, pooled=True)
    kept = torch.cat([batch["drop_caption_mask"] for batch in batches])
    assert 30 < kept.sum() < 70
    for batch in batches:
        for index, key in enumerate(batch["key"]):
            keep = batch["drop_caption_mask"][index].item()
            assert np.array_equal(batch["caption_latents"][index, 0], arrays(key)["caption_latents"] * keep)
            assert np.array_equal(batch["caption_pooled"][index], arrays(key)["caption_pooled"] * keep)
    read = make_loader(shards, 10, resolution=256, text_encoders=[""], caption_drop_prob=1.0)
    list(read)
    assert read.stats()["bytes"] == 100 * (128 + 2 * 8 * 16)


def test_every_epoch_draws_anew(shards: Path) -> None:
    dataset = LatentDataset(
        shards, 10, resolution=256, text_encoders=[""], extras=["key"], caption_drop_prob=0.5
    )
    first, second = list(dataset), list(dataset)

    def of(epoch: list[Any], key: str, name: str) -> Any:
        return next(b[name][b["key"].index(key)] for b in epoch if key in b["key"])

    keys = [key for batch in first for key in batch["key"]]
    assert any(of(first, key, "drop_caption_mask") != of(second, key, "drop_caption_mask") for key in keys)
    assert not torch.equal(of(first, keys[0], "image_latents"), of(second, keys[0], "image_latents"))


def test_one_name_stands_for_a_list_of_one(shards: Path) -> None:
    (batch, *_) = make_loader(shards, 8, resolution=256, text_encoders="t5", extras="key")
    assert set(batch) == {
        "image_latents", "drop_caption_mask", "caption_latents_t5", "caption_mask_t5", "key"
    }  # fmt: skip


def test_a_split_that_is_not_finished_is_read_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_shards(tmp_path / "a", [10, 10])
    manifest = json.loads((path / "manifest.json").read_text())
    for split in manifest["splits"].values():
        split["plan"]["units"], split["complete"] = 7, False
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert len(make_loader(path, 10, resolution=256)) == 2
    assert "2 of 7 units of split train are finished, and only they are read" in caplog.text


def test_text_of_varying_length_is_padded_and_masked(shards: Path) -> None:
    for tokens in (None, 3, T + 2):
        batches = one_epoch(shards, text_encoders=["", "t5"], caption_tokens=tokens, caption_drop_prob=0.3)
        for batch in batches:
            text, mask = batch["caption_latents_t5"][:, 0], batch["caption_mask_t5"]
            values = [arrays(key)["caption_latents_t5"] for key in batch["key"]]
            kept = batch["drop_caption_mask"].bool().tolist()
            longest = tokens or max([1] + [len(v) for v, keep in zip(values, kept, strict=True) if keep])
            assert text.shape == (10, longest, D) and mask.shape == (10, longest)
            for row, row_mask, value, keep in zip(text, mask, values, kept, strict=True):
                real = min(len(value), longest) if keep else 0
                assert np.array_equal(row[:real], value[:real])
                assert not row[real:].any()
                assert row_mask.tolist() == (
                    [True] * real + [False] * (longest - real) if keep else [True] * longest
                )


def test_flips_take_the_mirrored_field(shards: Path) -> None:
    flips = 0
    for batch in one_epoch(shards, flip_prob=0.5, posterior="mean"):
        for index, key in enumerate(batch["key"]):
            upright = (arrays(key)["moments_256"][:4].astype(np.float32) * np.float32(SCALE)).astype(
                np.float16
            )
            got = batch["image_latents"][index].numpy()
            flips += np.array_equal(got, upright[..., ::-1])
            assert np.array_equal(got, upright) or np.array_equal(got, upright[..., ::-1])
    assert 30 < flips < 70


def test_a_batch_the_trainer_keeps_is_never_overwritten(shards: Path) -> None:
    loader = make_loader(shards, 10, resolution=256, text_encoders=[""])
    kept = list(loader)
    copies = [batch["image_latents"].clone() for batch in kept]
    list(loader)
    assert all(torch.equal(batch["image_latents"], copy) for batch, copy in zip(kept, copies, strict=True))


# --- tars that are not ours -------------------------------------------------------------------------------------------


def strip(path: Path, folder: Path) -> Path:
    """The same tars under other names, without manifest and sidecars."""
    folder.mkdir()
    for tar in path.glob("*.tar"):
        (folder / tar.name.replace("train-", "x.")).write_bytes(tar.read_bytes())
    return folder


def test_foreign_tars_load_with_a_scale(shards: Path, tmp_path: Path) -> None:
    path = strip(shards, tmp_path / "foreign")
    with pytest.raises(ValueError, match="scale=None"):
        one_epoch(path)
    mine, foreign = one_epoch(shards, shuffle=False), one_epoch(path, shuffle=False, scale=SCALE)
    assert [b["key"] for b in mine] == [b["key"] for b in foreign]
    assert [b["caption"] for b in mine] == [b["caption"] for b in foreign]
    assert all(
        torch.equal(a["image_latents"], b["image_latents"]) for a, b in zip(mine, foreign, strict=True)
    )


def test_the_scan_of_a_foreign_tar_is_kept_until_it_changes(
    shards: Path, tmp_path: Path, cache: Path
) -> None:
    path = strip(shards, tmp_path / "foreign")
    LatentDataset(path, 10, resolution=512)
    kept = set((cache / "index").iterdir())
    LatentDataset(path, 10, resolution=512)
    assert set((cache / "index").iterdir()) == kept
    os.utime(next(path.iterdir()), (1, 1))
    LatentDataset(path, 10, resolution=512)
    assert len(set((cache / "index").iterdir()) - kept) == 1


@pytest.mark.parametrize("cut", [700, 1500, 4000])
def test_a_truncated_tar_never_gives_part_of_a_sample(shards: Path, tmp_path: Path, cut: int) -> None:
    path = strip(shards, tmp_path / "foreign")
    tar = path / "x.00000.tar"
    with tarfile.open(tar) as file:
        last = file.getmembers()[-1]
    with tar.open("r+b") as raw:
        raw.truncate(last.offset_data - cut)
    batches = one_epoch(path, 1, resolution=512)
    assert 98 <= len(batches) < 100
    for batch in batches:
        assert np.array_equal(batch["image_latents"][0], arrays(batch["key"][0])["latents_512"])
        assert np.array_equal(batch["caption_latents"][0, 0], arrays(batch["key"][0])["caption_latents"])


def test_a_missing_sidecar_is_replaced_by_the_headers(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "a", [10, 10])
    before = one_epoch(path)
    (path / "train-00000.parquet").unlink()
    after = one_epoch(path)
    assert [b["key"] for b in before] == [b["key"] for b in after]


# --- bad data ---------------------------------------------------------------------------------------------------------


def spoil(path: Path, key: str, member: str = "moments_256.npy") -> None:
    """Overwrite the header of one member."""
    for tar in path.glob("*.tar"):
        with tarfile.open(tar) as file:
            places = {info.name: info.offset_data for info in file}
        if f"{key}.{member}" in places:
            with tar.open("r+b") as raw:
                raw.seek(places[f"{key}.{member}"])
                raw.write(b"garbage!")


def test_a_damaged_sample_is_replaced_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_shards(tmp_path / "a", [20, 20])
    spoil(path, "k000005")
    loader = make_loader(path, 10, resolution=256, text_encoders=[""], extras=["key"], flip_prob=0)
    keys = [key for batch in loader for key in batch["key"]]
    assert len(keys) == 40 and "k000005" not in keys and len(set(keys)) == 39
    assert loader.stats()["substitutes"] == 1
    assert "train-00000, key k000005: not a version 1.0 .npy file" in caplog.text
    assert keys == [
        key
        for batch in make_loader(path, 10, resolution=256, text_encoders=[""], extras=["key"], flip_prob=0)
        for key in batch["key"]
    ]


def test_on_error_raise_names_shard_and_key(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "a", [20])
    spoil(path, "k000005", "caption_latents.npy")
    with pytest.raises(DataError, match=r"shard train-00000, key k000005: not a version 1.0 .npy"):
        list(make_loader(path, 10, resolution=256, text_encoders=[""], on_error="raise"))


def test_a_caption_that_cannot_be_read_costs_its_sample_only(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, read, failures = strip(shards, tmp_path / "foreign"), os.pread, [OSError(errno.EIO, "disk fault")]

    def pread(*place: int) -> bytes:
        if failures:
            raise failures.pop()
        return read(*place)

    monkeypatch.setattr(os, "pread", pread)
    batches = make_loader(path, 10, resolution=512, extras=["key", "caption"])
    for batch in batches:
        assert batch["caption"] == [f"a picture of {key}" for key in batch["key"]]
    assert batches.stats()["substitutes"] == 1
    assert "disk fault" in caplog.text


@pytest.mark.parametrize("damage", ["missing", "truncated", "another sidecar", "garbage sidecar"])
def test_a_damaged_shard_is_replaced(tmp_path: Path, damage: str) -> None:
    path = write_shards(tmp_path / "a", [20, 15])
    tar, sidecar = path / "train-00000.tar", path / "train-00000.parquet"
    if damage == "missing":
        tar.unlink()
    elif damage == "truncated":
        os.truncate(tar, tar.stat().st_size - 512)
    elif damage == "another sidecar":
        sidecar.write_bytes((path / "train-00001.parquet").read_bytes())
    else:
        sidecar.write_bytes(b"garbage")
    loader = make_loader(path, 5, resolution=256, text_encoders=[""], extras=["key"])
    keys = [key for batch in loader for key in batch["key"]]
    assert len(keys) == 35
    assert min(keys) >= "k000022"
    assert loader.stats()["substitutes"] == 20


def test_a_shard_that_comes_back_is_read_in_the_next_epoch(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "a", [20, 15])
    tar = (path / "train-00000.tar").rename(tmp_path / "away.tar")
    dataset = LatentDataset(path, 5, resolution=256, text_encoders=[""], extras=["key"])
    assert len({key for batch in dataset for key in batch["key"]}) <= 15
    tar.rename(path / "train-00000.tar")
    assert len({key for batch in dataset for key in batch["key"]}) == 35


@pytest.mark.parametrize("attempt", [1, ATTEMPTS])
def test_a_sample_found_at_the_last_attempt_counts(
    shards: Path, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    fill = Work.fill

    def fail_before(self: Work, indexes: Any, at: int) -> dict[int, DataError]:
        found = fill(self, indexes, at)
        return found if at >= attempt else dict.fromkeys(indexes.tolist(), DataError("not here"))

    monkeypatch.setattr(Work, "fill", fail_before)
    loader = make_loader(shards, 10, resolution=512, extras=["key"])
    batch = next(iter(loader))
    assert loader.stats()["substitutes"] == 10
    for index, key in enumerate(batch["key"]):
        assert np.array_equal(batch["image_latents"][index], arrays(key)["latents_512"])
    loader.close()


def test_nothing_readable_is_an_error_not_a_hang(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "a", [20])
    (path / "train-00000.tar").unlink()
    with pytest.raises(DataError, match="no readable sample in 8 other places"):
        list(make_loader(path, 5, resolution=256, text_encoders=[""]))


# --- wrong arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 101}, "100 samples do not fill one batch"),
        ({"resolution": 1024}, r"resolution=1024: .* has \[256, 512\]"),
        ({"resolution": None}, r"resolution=None: .* has \[256, 512\]"),
        ({"split": "test"}, r"split='test' is not in .* \['train'\]"),
        ({"text_encoders": "llama"}, r"text_encoders=\['llama'\]: .* has \['', 't5'\]"),
        (
            {"text_encoders": "t5", "pooled": True},
            r"pooled=True: .* has no caption_pooled of them; make it with",
        ),
        ({"extras": "caption_latents"}, "extras=.*'caption_latents' is neither a column of the sidecars nor"),
        ({"text_encoders": ["llama"]}, r"text_encoders=\['llama'\]: .* has \['', 't5'\]"),
        ({"resolution": 512, "flip_prob": 0.5}, "has no latents_512_flipped"),
        ({"scale": 0.5}, "scale=0.5"),
        ({"caption_drop_prob": 1.5}, "caption_drop_prob=1.5"),
        ({"posterior": "mode"}, "posterior='mode'"),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"extras": ["url"]}, "extras="),
        ({"weights": [1, 2]}, "1 paths need as many weights"),
        ({"rank": 1}, "give both or neither"),
        ({"rank": 2, "world_size": 2}, "rank=2 is not below world_size=2"),
        ({"partitions": 2}, "partitions=2 does not divide the world size, 1"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"prefetch": 0}, "prefetch=0"),
    ],
)
def test_wrong_arguments_are_named(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(shards, **{"batch_size": 10, "resolution": 256, **options})


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        make_loader(tmp_path / "nothing", 1)
    with pytest.raises(ValueError, match=r"no manifest.json and no .tar there"):
        make_loader(tmp_path, 1)


def test_unmixable_recipes_are_refused_with_what_differs(shards: Path, tmp_path: Path) -> None:
    other = write_shards(
        tmp_path / "b", [10], recipe={"dataset": {"path": "b"}, "vae": "another"}, fields=FIELDS
    )
    with pytest.raises(ValueError, match="vae: 'made-up' there, 'another' here"):
        make_loader([shards, other], 10, resolution=256)
    make_loader([shards, other], 10, resolution=256, may_differ=["dataset", "vae"])


# --- guidance: what stands for a dropped caption, and which encoders lose theirs --------------------------------------

NULL = {
    "caption_latents": np.full((T, D), 0.5, np.float16),
    "caption_latents_t5": np.full((2, D), 0.25, np.float16),
    "caption_pooled": np.full(D, 0.75, np.float16),
}


def test_a_dropped_caption_is_the_empty_captions_embedding_if_so_asked(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "a", [20, 20])
    np.savez(path / "null_caption.npz", **NULL)
    options = {"text_encoders": ["", "t5"], "pooled": True, "caption_drop_prob": 0.4}
    dropped = 0
    for batch in one_epoch(path, dropped="null", **options):
        for index, key in enumerate(batch["key"]):
            keep = bool(batch["drop_caption_mask"][index])
            values = arrays(key) if keep else NULL
            dropped += not keep
            tokens = len(values["caption_latents_t5"])
            assert np.array_equal(batch["caption_latents"][index, 0], values["caption_latents"])
            assert np.array_equal(batch["caption_pooled"][index], values["caption_pooled"])
            assert np.array_equal(
                batch["caption_latents_t5"][index, 0, :tokens], values["caption_latents_t5"]
            )
            assert not batch["caption_latents_t5"][index, 0, tokens:].any()
            assert batch["caption_mask_t5"][index].tolist() == [
                n < tokens for n in range(batch["caption_mask_t5"].shape[1])
            ]
    assert 8 < dropped < 24


def test_captions_are_dropped_by_encoder(shards: Path) -> None:
    """Each by a chance of its own; what is not named is never dropped."""
    options = {"text_encoders": ["", "t5"], "pooled": True}
    batches = one_epoch(shards, caption_drop_prob={"": 0.5, "t5": 0.25}, **options)
    masks = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if "drop" in name}
    assert masks.keys() == {"drop_caption_mask", "drop_caption_mask_t5"}
    first, second = masks["drop_caption_mask"] == 0, masks["drop_caption_mask_t5"] == 0
    assert 35 < first.sum() < 65 and 12 < second.sum() < 40
    assert (first & second).any() and (first & ~second).any() and (~first & second).any()
    for batch in batches:
        for index, key in enumerate(batch["key"]):
            keep, keep_t5 = (int(batch[f"drop_caption_mask{name}"][index]) for name in ("", "_t5"))
            assert np.array_equal(batch["caption_latents"][index, 0], arrays(key)["caption_latents"] * keep)
            assert np.array_equal(batch["caption_pooled"][index], arrays(key)["caption_pooled"] * keep)
            assert bool(batch["caption_latents_t5"][index].any()) == bool(keep_t5)
    only = one_epoch(shards, caption_drop_prob={"t5": 1.0}, **options)
    assert all(batch["drop_caption_mask"].all() and not batch["drop_caption_mask_t5"].any() for batch in only)


def test_what_guidance_cannot_do_is_refused(tmp_path: Path) -> None:
    path = write_shards(tmp_path / "a", [20])
    with pytest.raises(ValueError, match="'llama' is not read; there are \\['', 't5'\\]"):
        one_epoch(path, text_encoders=None, caption_drop_prob={"llama": 0.1})
    one_epoch(path, dropped="null")  # nothing is dropped, and nothing needed
    with pytest.raises(ValueError, match=r"there is no .*null_caption.npz; .* give dropped='zeros'"):
        one_epoch(path, dropped="null", caption_drop_prob=0.1)
    np.savez(path / "null_caption.npz", caption_latents=np.zeros((T + 1, D), np.float16))
    with pytest.raises(ValueError, match=r"caption_latents is float16 of shape \(5, 6\), not \(4, 6\)"):
        one_epoch(path, dropped="null", caption_drop_prob=0.1)
    (path / "null_caption.npz").write_bytes(b"PK\3\4 cut")
    with pytest.raises(ValueError, match=r"dropped='null': .* run it again"):
        one_epoch(path, dropped="null", caption_drop_prob=0.1)


def test_half_is_mirrored_where_mirrored_fields_are(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def flips(path: Any, **options: Any) -> int:
        batches = make_loader(
            path, 10, resolution=256, text_encoders=[""], extras="key", posterior="mean", **options
        )
        return sum(
            np.array_equal(
                batch["image_latents"][index],
                (arrays(key)["moments_256_flipped"][:4].astype(np.float32) * np.float32(SCALE)).astype(np.float16),
            )
            for batch in batches
            for index, key in enumerate(batch["key"])
        )  # fmt: skip

    assert 30 < flips(shards) < 70
    assert flips(shards, flip_prob=0.0) == 0
    plain = [field for field in FIELDS if not field.name.endswith("_flipped")]
    upright = write_shards(tmp_path / "b", [20], prefix="m", fields=plain)
    assert flips(upright) == 0 and not caplog.text
    assert flips([shards, upright]) == 0
    assert f"{upright} has no mirrored fields, other paths have: nothing is flipped" in caplog.text


def test_a_pooled_vector_is_read_without_the_states_of_its_encoder(shards: Path) -> None:
    for pooled in ([""], ""):
        batch = next(
            iter(make_loader(shards, 5, resolution=256, text_encoders="t5", pooled=pooled, extras="key"))
        )
        assert set(batch) == {
            "image_latents", "drop_caption_mask", "caption_latents_t5", "caption_mask_t5", "caption_pooled", "key"
        }  # fmt: skip
        for index, key in enumerate(batch["key"]):
            assert np.array_equal(batch["caption_pooled"][index], arrays(key)["caption_pooled"])
    with pytest.raises(ValueError, match=r"pooled=\['t5'\]: .* has caption_pooled of \[''\]; name these"):
        make_loader(shards, 5, resolution=256, pooled=["t5"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"posterior": "mode"}, "posterior='mode': expected 'sample' or 'mean'"),
        ({"dropped": "empty"}, "dropped='empty': expected 'zeros' or 'null'"),
        (
            {"extras": ["url"]},
            "extras=\\['url'\\]: 'url' is neither a column of the sidecars nor one of their extras",
        ),
        ({"caption_drop_prob": 10}, "caption_drop_prob=10: expected a share from 0 to 1, 0.1 for a tenth"),
        ({"caption_drop_prob": {"": "0.1"}}, "expected a share from 0 to 1"),
        ({"flip_prob": -1}, "flip_prob=-1: expected a share"),
        ({"seed": None}, "seed=None: expected an int"),
        ({"caption_tokens": 0}, "caption_tokens=0: expected an int of at least 1"),
    ],
)
def test_errors_say_what_was_expected(shards: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loader(shards, 10, **{"resolution": 256, **options})
