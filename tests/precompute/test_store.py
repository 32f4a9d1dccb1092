"""`--store bfloat16`: states beyond float16, from the command to the loader, and every reader on the way."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from loader import make_loader
from precompute import preview, verify
from precompute.errors import ModelError, RecipeMismatch
from precompute.run import Config, run
from tests.support import tiny_models

HUGE = 3e5
CAPTIONS = ["a cat on the cup", "the woman with a flag", "man"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.RandomState(0)
    for number, caption in enumerate(CAPTIONS):
        small = random.randint(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


def save_huge(folder: Path, words: list[str] | None = None) -> Path:
    """A decoder whose inner states are beyond float16, as Gemma's are; of some words alone, where they are named."""
    tiny_models.save_decoder_only(folder)
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = tokenizer.convert_tokens_to_ids(words) if words else slice(None)
    model.model.embed_tokens.weight.data[rows] *= HUGE / 0.02
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_huge(tmp_path_factory.mktemp("huge"))


def config(photos: Path, output: Path, encoder: str, **options: Any) -> Config:
    return Config(
        "builders/folder", output, data_dir=photos, options=("min_image_size=1",), vae="toy", text_encoder=(encoder,),
        resolutions=(64,), dtype="float32", **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shards(photos: Path, huge: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "out"
    run(config(photos, output, f"auto:{huge}?layer=0,1", store="bfloat16"))
    return output


def members(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                yield member.name, file.read()


def expected(huge: Path, caption: str) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(huge, dtype=torch.float32).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(huge)(caption, return_tensors="pt")
    with torch.no_grad():
        layers = model(input_ids=tokens.input_ids, output_hidden_states=True).hidden_states[:2]
    return torch.cat(layers, dim=-1)[0].to(torch.bfloat16)


def test_a_loader_gives_bfloat16(shards: Path, huge: Path, photos: Path, tmp_path: Path) -> None:
    (batch,) = make_loader(shards, 3, shuffle=False, posterior="mean", extras=["caption"])
    assert batch["caption_latents"].dtype == batch["image_latents"].dtype == torch.bfloat16
    for row, caption in enumerate(batch["caption"]):
        states = batch["caption_latents"][row, 0][batch["caption_mask"][row]]
        torch.testing.assert_close(states, expected(huge, caption), rtol=2**-7, atol=0)
    assert batch["caption_latents"].abs().max() > 65504 and torch.isfinite(batch["caption_latents"]).all()
    run(config(photos, tmp_path / "half", "toy"))
    (half,) = make_loader(tmp_path / "half", 3, shuffle=False, posterior="mean")
    torch.testing.assert_close(
        batch["image_latents"].float(), half["image_latents"].float(), rtol=2**-7, atol=5e-3
    )


def test_a_dropped_caption_is_the_empty_one_s(shards: Path) -> None:
    (batch,) = make_loader(shards, 3, dropped="null", caption_drop_prob=1.0, num_workers=1)
    stored = np.load(shards / "null_caption.npz")["caption_latents"]
    assert stored.dtype == np.uint16
    for states in batch["caption_latents"][:, 0]:
        assert torch.equal(states, torch.from_numpy(stored).view(torch.bfloat16))


def test_numpy_alone_reads_the_bits(shards: Path, huge: Path) -> None:
    found = {
        name: np.load(io.BytesIO(data), allow_pickle=False)
        for name, data in members(shards)
        if name.endswith("npy")
    }
    captions = {name[:-4]: data.decode() for name, data in members(shards) if name.endswith(".txt")}
    assert {array.dtype for array in found.values()} == {np.dtype("uint16")}
    for key, caption in captions.items():
        bits = found[f"{key}.caption_latents.npy"].astype(np.uint32) << 16
        np.testing.assert_allclose(bits.view(np.float32), expected(huge, caption).float().numpy(), rtol=2**-7)


def test_verify_and_preview_read_them(shards: Path, huge: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = (f"auto:{huge}?layer=0,1",)
    assert verify.run(verify.Config(str(shards), decode=3, text_encoder=encoder)) == 0
    assert "bfloat16" not in capsys.readouterr().out, "no finding names it"
    preview.run(preview.Config(str(shards), num_samples=3))
    assert "bfloat16" in (shards / "report.html").read_text()


def test_verify_sees_what_is_not_finite() -> None:
    from loader.format import Field
    from precompute.verification.check_shard import value_fault

    field = Field("caption_latents", "caption_latents", "bfloat16", (None, 2))
    good = torch.tensor([[1e38, -3.0]]).to(torch.bfloat16).view(torch.uint16).numpy()
    assert value_fault(good, field) == ""
    for bad in (torch.inf, -torch.inf, torch.nan):
        bits = torch.tensor([[bad, 1.0]]).to(torch.bfloat16).view(torch.uint16).numpy()
        assert value_fault(bits, field) == "has 1 of 2 values that are not finite"
    moments = Field("moments_64", "moments", "bfloat16", (2, 1, 1))
    std = torch.tensor([[[1.0]], [[-1.0]]]).to(torch.bfloat16).view(torch.uint16).numpy()
    assert value_fault(std, moments) == "has a negative standard deviation"


def test_a_folder_holds_one_precision(photos: Path, huge: Path, shards: Path) -> None:
    with pytest.raises(RecipeMismatch, match="store"):
        run(config(photos, shards, f"auto:{huge}?layer=-1"))


def test_float16_names_the_way_out(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        ModelError, match=r"does not fit into float16: the same command with .*--store bfloat16"
    ):
        run(config(photos, tmp_path / "all", f"auto:{save_huge(tmp_path / 'm')}?layer=0"))
    some = save_huge(tmp_path / "some", ["man"])
    run(config(photos, tmp_path / "out", f"auto:{some}?layer=0"))
    assert caplog.text.count("--store bfloat16 would keep it") == 1
    assert sum(1 for name, _ in members(tmp_path / "out") if name.endswith(".txt")) == 2
    run(config(photos, tmp_path / "kept", f"auto:{some}?layer=0", store="bfloat16"))
    assert sum(1 for name, _ in members(tmp_path / "kept") if name.endswith(".txt")) == 3
