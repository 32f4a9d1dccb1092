"""`--features`: the tokens are those of the library's own model behind its own image processor, and what the loader gives back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from loader import make_loader
from precompute import run, verify
from precompute.encode.features import open_feature_encoder, parse_features
from precompute.errors import ModelError, UsageError
from precompute.input.pixels import read_picture
from tests.support.raw.archive import write_tar
from tests.support.raw.photos import jpeg
from tests.support.swapped import swap_members

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 7,
}
# Of each family: its model and configuration, its image processor, and the tokens ahead of the patches.
FAMILIES: dict[str, tuple[Any, Any, Any, int]] = {
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config, transformers.BitImageProcessorPil, 1),
    "registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig,
        transformers.BitImageProcessorPil,
        5,
    ),
    "dinov3": (
        transformers.DINOv3ViTModel,
        transformers.DINOv3ViTConfig,
        transformers.BitImageProcessorPil,
        5,
    ),
    "clip": (
        transformers.CLIPVisionModel,
        transformers.CLIPVisionConfig,
        transformers.CLIPImageProcessorPil,
        1,
    ),
    "siglip": (
        transformers.SiglipVisionModel,
        transformers.SiglipVisionConfig,
        transformers.SiglipImageProcessorPil,
        0,
    ),
    "siglip2": (
        transformers.Siglip2VisionModel,
        transformers.Siglip2VisionConfig,
        transformers.Siglip2ImageProcessorPil,
        0,
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model of each family, as it is published: weights, configuration and image processor."""
    folder = tmp_path_factory.mktemp("models")
    for name, (model, config, processor, _) in FAMILIES.items():
        torch.manual_seed(1)
        more = {"num_register_tokens": 4} if name == "dinov3" else {}
        sizes = {**SIZES, "num_patches": 16} if name == "siglip2" else SIZES
        model(config(**sizes, **more)).save_pretrained(folder / name)
        edges = {"height": 28, "width": 28} if name == "siglip" else {"shortest_edge": 32}
        crop = {} if name == "siglip" else {"crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
        asked = {"patch_size": 7, "max_num_patches": 17} if name == "siglip2" else {"size": edges, **crop}
        processor(**asked).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("layer", [-1, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_library(models: Path, name: str, layer: int) -> None:
    family, _, processors, ahead = FAMILIES[name]
    encoder = open_feature_encoder(f"x={models / name}?layer={layer}")
    assert (encoder.size, encoder.patch, encoder.dim) == (28, 7, 16)
    pixels = torch.randint(
        0, 256, (2, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    processor = processors.from_pretrained(models / name, do_resize=False, do_center_crop=False)
    inputs = processor([image.permute(1, 2, 0).numpy() for image in pixels], return_tensors="pt")
    with torch.no_grad():
        output = family.from_pretrained(models / name)(**inputs, output_hidden_states=True)
    states = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
    # Behind the patches of SigLIP2 is padding.
    torch.testing.assert_close(encoder.tokens(pixels), states[:, ahead : ahead + 16], rtol=1e-4, atol=1e-5)
    assert encoder.tokens(pixels).shape == (2, 16, 16)
    pooled = open_feature_encoder(f"x={models / name}?pooled").tokens(pixels)
    torch.testing.assert_close(pooled[:, 0], output.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_sizes_and_shapes(models: Path, name: str) -> None:
    encoder = open_feature_encoder(f"x={models / name}?size=42")
    assert encoder.size_of(1, 1) == (42, 42) and encoder.size_of(128, 32) == (84, 21)
    for height, width in ((42, 42), (21, 84)):
        assert encoder.tokens(torch.zeros(1, 3, height, width, dtype=torch.uint8)).shape == (1, 36, 16)


def test_what_cannot_be(models: Path, tmp_path: Path) -> None:
    for value, match in (
        ("dino", "NAME=ID"),
        ("a_flipped=x", "NAME=ID"),
        ("x=y?size=big", "whole numbers"),
        ("x=y?depth=1", "unknown .*depth"),
    ):
        with pytest.raises(UsageError, match=match):
            parse_features(value)
    with pytest.raises(UsageError, match=r"size=30 is not divisible by 7.*use 28"):
        open_feature_encoder(f"x={models / 'dinov2'}?size=30")
    with pytest.raises(UsageError, match="no layer 9"):
        open_feature_encoder(f"x={models / 'clip'}?layer=9")
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="of type 'bert', not one of clip"):
        open_feature_encoder(f"x={bert}")


# --- through the command ---


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    for unit in range(2):
        members = []
        for row in range(4):
            image = jpeg(unit * 4 + row, (512, 256) if row == 3 else (256, 256))
            members += [(f"{unit}{row}.jpg", image), (f"{unit}{row}.txt", f"caption {row}".encode())]
        write_tar(folder / f"{unit:05d}.tar", members)
    return folder


def made(output: Path, raw: Path, **options: Any) -> Path:
    toys: dict[str, Any] = {"vae": "toy", "text_encoder": ("toy",), "dtype": "float32", "num_threads": 1}
    run.run(
        run.Config("builders/webdataset", output, data_dir=raw, resolutions=(112,), **{**toys, **options})
    )
    return output


def batches(path: Any, **options: Any) -> list[Any]:
    return list(make_loader(path, 2, features=["dino"], extras=["key"], **options))


@pytest.mark.parametrize(
    "shape", [{}, {"buckets": 16, "flip": True, "crop": "random"}], ids=["squares", "buckets"]
)
def test_a_layer_of_features_is_what_is_made_at_once(
    models: Path, raw: Path, tmp_path: Path, shape: dict[str, Any]
) -> None:
    features = (f"dino={models / 'dinov2'}",)
    whole = made(tmp_path / "whole", raw, features=features, **shape)
    base = made(tmp_path / "base", raw, **shape)
    flip = shape.get("flip", False)
    run.run(
        run.Config(
            output=tmp_path / "dino",
            beside=str(base),
            features=features,
            data_dir=raw,
            flip=flip,
            dtype="float32",
        )
    )
    joined = batches((base, tmp_path / "dino"), posterior="mean")
    assert joined
    for one, other in zip(joined, batches(whole, posterior="mean"), strict=True):
        assert one["key"] == other["key"]
        assert torch.equal(one["features_dino"], other["features_dino"])
        assert torch.equal(one["image_latents"], other["image_latents"])
    assert len({batch["features_dino"].shape for batch in joined}) == (2 if shape else 1)
    for folder, options in ((whole, {}), (tmp_path / "dino", {"beside": str(base)})):
        options = {**options, "decode": 8, "features": features, "data_dir": raw}
        assert not told(folder, **options)
        keys = ("00000-00", "00000-02")
        for name in ("features_dino", *(["features_dino_flipped"] if flip else [])):
            swap_members(folder, *(f"{key}.{name}.npy" for key in keys))
            found = told(folder, **options)
            assert len(found) == 2
            for line, key, other in zip(found, keys, keys[::-1], strict=True):
                assert f"{key}: {name} is that of the source of {other}" in line
            swap_members(folder, *(f"{key}.{name}.npy" for key in keys))
    if flip:
        for key in keys:
            swap_members(whole, f"{key}.features_dino.npy", f"{key}.features_dino_flipped.npy")
        found = told(whole, decode=8, features=features, data_dir=raw)
        assert len(found) == 4 and all("is that of its source mirrored" in line for line in found)


def told(folder: Path, **options: Any) -> list[str]:
    return [str(finding) for finding in verify.verify(verify.Config(str(folder), **options)).findings]


@pytest.mark.parametrize(("name", "buckets"), [("dinov2", None), ("siglip2", None), ("siglip2", 16)])
@torch.no_grad()
def test_features_are_those_that_the_library_has_of_the_crop_and_turn_with_the_picture(
    models: Path, raw: Path, tmp_path: Path, name: str, buckets: int | None
) -> None:
    made(tmp_path / "out", raw, features=(f"dino={models / name}",), flip=True, buckets=buckets)
    family, _, processors, ahead = FAMILIES[name]
    given = {"max_num_patches": 20} if name == "siglip2" else {}
    processor = processors.from_pretrained(models / name, do_resize=False, do_center_crop=False, **given)
    model = family.from_pretrained(models / name)
    size_of, shapes = open_feature_encoder(f"dino={models / name}").size_of, set()
    for flip in (0.0, 1.0):
        for batch in batches(tmp_path / "out", flip_prob=flip):
            for key, found in zip(batch["key"], batch["features_dino"], strict=True):
                number = int(key[-1])
                source = jpeg(4 * int(key[:5]) + number, (512, 256) if number == 3 else (256, 256))
                pixels = read_picture(source, [112], buckets, features={"dino": size_of}).pixels["dino"]
                shapes.add(pixels.shape)
                turned = pixels[:, ::-1].copy() if flip else pixels
                states = model(**processor([turned], return_tensors="pt")).last_hidden_state[0, ahead:]
                torch.testing.assert_close(found.float(), states[: len(found)], rtol=1e-2, atol=1e-3)
    assert len(shapes) == (2 if buckets else 1)


def test_the_loader_says_what_there_is(models: Path, raw: Path, tmp_path: Path) -> None:
    base = made(tmp_path / "base", raw, flip=True)
    options: dict[str, Any] = {
        "beside": str(base),
        "features": (f"dino={models / 'dinov2'}",),
        "data_dir": raw,
    }
    run.run(run.Config(output=tmp_path / "dino", dtype="float32", **options))
    with pytest.raises(ValueError, match=r"features=\['clip'\]: .*base has \['dino'\]"):
        make_loader((base, tmp_path / "dino"), 2, features=["clip"])
    with pytest.raises(ValueError, match="no features_dino_flipped; give flip_prob=0"):
        make_loader((base, tmp_path / "dino"), 2, features=["dino"])
    assert batches((base, tmp_path / "dino"), flip_prob=0.0)[0]["features_dino"].shape == (2, 16, 16)
