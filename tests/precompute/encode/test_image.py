"""Every image encoder gives the library's own numbers, at a scale that the library's own decoder undoes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from precompute.encode.batch_encoder import BatchEncoder, EncoderInput
from precompute.encode.image import ImageEncoder, open_image_encoder
from precompute.encode.toy import ToyVAE
from precompute.errors import PrecomputeError, UsageError
from tests.support import tiny_models
from tests.support.raw.photos import photo

MEANS, STDS = [0.3, -0.2, 0.1, 0.0], [1.5, 0.5, 2.0, 1.0]
KL = diffusers.AutoencoderKL


def save_wan(folder: Path) -> Path:
    torch.manual_seed(0)
    diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=MEANS, latents_std=STDS,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def posterior(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = model.encode(pixels).latent_dist
    return found.mean, found.std


def one_frame(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = posterior(model, pixels[:, :, None])
    return mean[:, :, 0], std[:, :, 0]


def opaque_frame(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What diffusers' QwenImage21Pipeline makes of an image: `convert("RGBA")`, so alpha is 255, or 1."""
    return one_frame(model, torch.nn.functional.pad(pixels, (0, 0, 0, 0, 0, 1), value=1.0))


def patches(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """2x2 cells side by side into the channels, as diffusers' Flux2Pipeline does: view, permute, reshape."""

    def patch(x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return x.reshape(b, c * 4, h // 2, w // 2)

    return tuple(patch(x) for x in posterior(model, pixels))


def unpatched(raw: torch.Tensor) -> torch.Tensor:
    b, c, h, w = raw.shape
    raw = raw.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return raw.reshape(b, c // 4, h * 2, w * 2)


def column(values: Any) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32).view(-1, 1, 1)


def batch_norm(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return column(model.bn.running_mean), column(
        torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)
    )


# name: how to save it, its class, its subfolder, raw mean and std by the library, its normalisation, raw -> pixels
Family = tuple[Callable[[Path], Path], Any, str, Callable[..., Any], Callable[..., Any], Callable[..., Any]]
FAMILIES: dict[str, Family] = {
    "sdxl": (
        lambda f: tiny_models.save_kl(f, scaling_factor=0.13025), KL, "vae", posterior,
        lambda m, x: x * 0.13025, lambda m, x: m.decode(x).sample,
    ),
    "flux, 16 channels": (
        lambda f: tiny_models.save_kl(f, 16, scaling_factor=0.3611, shift_factor=0.1159), KL, "vae", posterior,
        lambda m, x: (x - 0.1159) * 0.3611, lambda m, x: m.decode(x).sample,
    ),
    "statistics of each channel": (
        lambda f: tiny_models.save_kl(f, latents_mean=MEANS, latents_std=STDS, scaling_factor=0.5), KL, "vae", posterior,
        lambda m, x: (x - column(MEANS)) * 0.5 / column(STDS), lambda m, x: m.decode(x).sample,
    ),
    "dc": (
        tiny_models.save_dc, diffusers.AutoencoderDC, "", lambda m, x: (m.encode(x).latent, None),
        lambda m, x: x * 0.41407, lambda m, x: m.decode(x).sample,
    ),
    "tiny": (
        tiny_models.save_tiny, diffusers.AutoencoderTiny, "", lambda m, x: (m.encode(x).latents, None),
        lambda m, x: x, lambda m, x: m.decode(x).sample,
    ),
    "qwen": (
        tiny_models.save_qwen, diffusers.AutoencoderKLQwenImage, "", one_frame,
        lambda m, x: (x - column(m.config.latents_mean)) / column(m.config.latents_std),
        lambda m, x: m.decode(x[:, :, None]).sample[:, :, 0],
    ),
    "qwen 2.1": (
        lambda f: tiny_models.save_qwen(f, diffusers.AutoencoderKLQwenImage21, decoder_base_dim=8), diffusers.AutoencoderKLQwenImage21, "", opaque_frame,
        lambda m, x: (x - column(m.config.latents_mean)) / column(m.config.latents_std),
        lambda m, x: m.decode(x[:, :, None]).sample[:, :3, 0],
    ),
    "hunyuan": (
        tiny_models.save_hunyuan, diffusers.AutoencoderKLHunyuanImage, "vae", posterior,
        lambda m, x: x * 0.75289, lambda m, x: m.decode(x).sample,
    ),
    "wan": (
        save_wan, diffusers.AutoencoderKLWan, "", one_frame,
        lambda m, x: (x - column(MEANS)) / column(STDS), lambda m, x: m.decode(x[:, :, None]).sample[:, :, 0],
    ),
    "ltx": (
        tiny_models.save_ltx, diffusers.AutoencoderKLLTXVideo, "", one_frame,
        lambda m, x: (x - column(m.latents_mean)) / column(m.latents_std),
        lambda m, x: m.decode(x[:, :, None]).sample[:, :, 0],
    ),
    "flux2": (
        tiny_models.save_flux2, diffusers.AutoencoderKLFlux2, "", patches,
        lambda m, x: (x - batch_norm(m)[0]) / batch_norm(m)[1], lambda m, x: m.decode(unpatched(x)).sample,
    ),
}  # fmt: skip


def pixels(count: int = 2, size: int = 64) -> torch.Tensor:
    """uint8 (B, 3, H, W) of real photographs."""
    return torch.stack([torch.from_numpy(np.array(photo(i, (size, size)))) for i in range(count)]).permute(
        0, 3, 1, 2
    )


def samples(count: int = 2, size: int = 64, keys: str = "abcdefgh") -> list[EncoderInput]:
    rows = pixels(count, size).permute(0, 2, 3, 1).numpy()
    return [EncoderInput(key, [""], {size: row}) for key, row in zip(keys, rows, strict=False)]


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    save, model_class, subfolder, raw, normalise, decode = FAMILIES[request.param]
    folder = save(tmp_path_factory.mktemp("model"))
    model = model_class.from_pretrained(folder, subfolder=subfolder).eval().requires_grad_(False)
    return SimpleNamespace(
        encoder=open_image_encoder(str(folder)), model=model, raw=raw, normalise=normalise, decode=decode
    )


def test_raw_latents_are_those_of_the_library(family: Any) -> None:
    mean, std = family.encoder.encode(pixels())
    expected_mean, expected_std = family.raw(family.model, pixels().float() / 127.5 - 1)
    torch.testing.assert_close(mean, expected_mean)
    assert (std is None) == (expected_std is None) == (not family.encoder.has_posterior)
    if std is not None:
        torch.testing.assert_close(std, expected_std)
    assert mean.shape[1:] == (
        family.encoder.channels,
        64 // family.encoder.factor,
        64 // family.encoder.factor,
    )


def test_stored_latents_are_what_the_library_normalises_to(family: Any) -> None:
    field, (arrays, _) = stored(family.encoder, "mode")
    mean, _ = family.raw(family.model, pixels().float() / 127.5 - 1)
    expected = family.normalise(family.model, mean)[0]
    np.testing.assert_allclose(arrays[field.name], expected, rtol=2e-3, atol=1e-4)
    assert field.kind == "latents" and arrays[field.name].shape == field.shape


def test_moments_become_latents_by_the_scale_and_shift_of_their_field(family: Any) -> None:
    field, (arrays, _) = stored(family.encoder, "moments")
    mean, std = family.raw(family.model, pixels().float() / 127.5 - 1)
    if std is None:
        assert field.kind == "latents", "a model without a posterior has no moments"
        return
    assert field.kind == "moments" and arrays[field.name].shape == field.shape
    raw_mean, raw_std = np.split(arrays[field.name].astype(np.float32), 2)
    np.testing.assert_allclose(raw_std, std[0], rtol=1e-3, atol=1e-6)
    latents = (raw_mean - column(field.shift).numpy()) * column(field.scale).numpy()
    np.testing.assert_allclose(latents, family.normalise(family.model, mean)[0], rtol=4e-3, atol=4e-3)


def test_decoding_unscaled_latents_gives_the_library_s_picture(family: Any) -> None:
    encoder = family.encoder
    mean, _ = encoder.encode(pixels())
    latents = (mean - column(encoder.shift)) * column(encoder.scale)
    decoded = encoder.decode(latents / column(encoder.scale) + column(encoder.shift))
    expected = family.decode(family.model, mean)
    expected = ((expected + 1) * 127.5).round().clamp(0, 255)
    assert (decoded.float() - expected).abs().max() <= 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_the_library_s(name: str, dtype: str, tmp_path: Path) -> None:
    save, model_class, subfolder, raw, *_ = FAMILIES[name]
    folder, torch_dtype = save(tmp_path / "model"), getattr(torch, dtype)
    model = model_class.from_pretrained(folder, subfolder=subfolder, torch_dtype=torch_dtype).eval()
    encoder, whole = open_image_encoder(str(folder), dtype=dtype), open_image_encoder(str(folder))
    assert (encoder.scale, encoder.shift) == (whole.scale, whole.shift), "scales are not rounded"
    with torch.no_grad():
        expected = raw(model, (pixels().float() / 127.5 - 1).to(torch_dtype))
    for ours, theirs in zip(encoder.encode(pixels()), expected, strict=True):
        if ours is not None:
            # Kernels of some processors round otherwise for another layout in memory: by one rounding of the dtype at most.
            most = torch.finfo(torch_dtype).eps * float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=most)


def test_recipe_tells_other_weights_apart(tmp_path: Path) -> None:
    folder = tiny_models.save_kl(tmp_path / "model")
    before = open_image_encoder(str(folder)).recipe
    assert open_image_encoder(str(folder)).recipe == before
    model = KL.from_pretrained(folder / "vae")
    model.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3
    model.save_pretrained(folder / "vae")
    after = open_image_encoder(str(folder)).recipe
    assert {name for name in before if before[name] != after[name]} == {"weights"}


# --- what is stored ---


def arrays_of(batches: BatchEncoder, rows: list[EncoderInput]) -> list[Any]:
    return [encoded and encoded.arrays for encoded in batches.collect(batches.launch(rows))]


def stored(encoder: ImageEncoder, kind: str, rows: list[EncoderInput] | None = None, **options: Any) -> Any:
    """The first field, and the arrays of each sample."""
    batches = BatchEncoder(encoder, [], options.pop("resolutions", [64]), kind, seed=0, **options)
    return batches.fields[0], arrays_of(batches, rows or samples())


@pytest.fixture(scope="module")
def toy() -> ImageEncoder:
    return open_image_encoder("toy")


def test_noise_depends_on_seed_and_key_alone(toy: ImageEncoder) -> None:
    field, (a, b) = stored(toy, "sample")
    _, (b_alone,) = stored(toy, "sample", samples()[1:])
    np.testing.assert_array_equal(b[field.name], b_alone[field.name])
    _, (other_key,) = stored(toy, "sample", samples(1, keys="z"))
    assert (a[field.name] != other_key[field.name]).mean() > 0.9
    other_seed = BatchEncoder(toy, [], [64], "sample", seed=1)
    (other,) = arrays_of(other_seed, samples(1))
    assert (a[field.name] != other[field.name]).mean() > 0.9


def test_flipped_field_is_the_encoding_of_mirrored_pixels(tmp_path: Path) -> None:
    encoder = open_image_encoder(str(tiny_models.save_kl(tmp_path)))
    mirrored = [EncoderInput(s.key, [""], {64: s.pixels[64][:, ::-1]}) for s in samples()]
    _, both = stored(encoder, "moments", flip=True)
    _, other = stored(encoder, "moments", mirrored)
    for arrays, expected in zip(both, other, strict=True):
        np.testing.assert_array_equal(arrays["moments_64_flipped"], expected["moments_64"])
        # A convolution is not symmetric: mirroring the latents would be another thing.
        assert not np.allclose(arrays["moments_64_flipped"], arrays["moments_64"][..., ::-1], atol=1e-3)


class Overflowing(torch.nn.Module):
    """A VAE whose values pass 65504 for bright pictures, on the way in float16 or, with `stays`, in the end too."""

    def __init__(self, stays: bool) -> None:
        super().__init__()
        self.stays = stays
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.config = SimpleNamespace(scaling_factor=1.0)

    def encode(self, x: torch.Tensor) -> SimpleNamespace:
        mean = torch.nn.functional.avg_pool2d(x.float(), 8).to(x.dtype)[:, :1]
        mean = mean * 1e5 * self.weight
        mean = mean if self.stays else mean / 1e5
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.ones_like(mean)))


@pytest.mark.parametrize("stays", [False, True])
def test_overflow_is_computed_again_in_wider_precision_or_rejected(stays: bool) -> None:
    encoder = ImageEncoder(Overflowing(stays).half(), {}, torch.device("cpu"), torch.float16)
    bright, dark = np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), 128, np.uint8)
    rows = [EncoderInput("dark", [""], {64: dark}), EncoderInput("bright", [""], {64: bright})]
    field, (first, second) = stored(encoder, "moments", rows)
    assert np.isfinite(first[field.name]).all()
    if stays:
        assert second is None
    else:
        np.testing.assert_allclose(second[field.name][0], 1, rtol=1e-2)


class SmallMemory(ImageEncoder):
    """A device that holds so many images and no more."""

    holds = 3
    sizes: list[int]

    def _encode(self, model: Any, pixels: torch.Tensor) -> Any:
        if pixels.shape[-1] == 64:
            self.sizes.append(len(pixels))
        if len(pixels) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return super()._encode(model, pixels)


def test_too_large_a_batch_goes_on_in_halves(toy: ImageEncoder, caplog: pytest.LogCaptureFixture) -> None:
    SmallMemory.sizes, SmallMemory.holds = [], 3
    small = SmallMemory(ToyVAE(), {}, torch.device("cpu"), torch.float32)
    batches = BatchEncoder(small, [], [64], "moments", 0)
    results = [arrays_of(batches, samples(8)) for _ in range(2)]
    assert SmallMemory.sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2], "halved once, and for good"
    assert "--batch-size" in caplog.text
    _, expected = stored(toy, "moments", samples(8))
    for result in results:
        for one, other in zip(result, expected, strict=True):
            np.testing.assert_array_equal(one["moments_64"], other["moments_64"])
    SmallMemory.holds = 0
    with pytest.raises(PrecomputeError, match="--resolutions 64"):
        batches.launch(samples(1))


@pytest.mark.parametrize("first", [1, 3, 32])
def test_batches_that_are_filled_up_go_on_in_halves_of_what_they_are_filled_to(first: int) -> None:
    SmallMemory.sizes, SmallMemory.holds = [], 16
    small = SmallMemory(ToyVAE(), {}, torch.device("cpu"), torch.float32)
    batches = BatchEncoder(small, [], [64], "moments", 0, fill_to=32)
    for count in (first, 8):
        results = arrays_of(batches, [samples(8)[i % 8] for i in range(count)])
        assert len(results) == count and None not in results
    assert set(SmallMemory.sizes) == {32, 16}, "a compiled encoder sees few sizes"


def test_an_error_that_is_not_of_memory_is_raised(toy: ImageEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(toy, "_encode", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        stored(toy, "moments")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_a_compiled_encoder_gives_the_same_latents_whatever_came_before(tmp_path: Path) -> None:
    """Batches of any size, in any order, by one compiled graph: units come to a process in no certain order."""
    name = str(tiny_models.save_tiny(tmp_path))  # few kernels: each costs seconds of a C++ compiler
    eager, compiled = open_image_encoder(name), open_image_encoder(name)
    compiled.compile()
    torch._dynamo.utils.counters.clear()
    found = []
    for counts in ((3, 4, 1), (1, 4, 3)):
        batches = BatchEncoder(compiled, [], [64], "moments", 0, flip=True, fill_to=4)
        found.append({n: arrays_of(batches, samples(n)) for n in counts})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for count in (1, 3, 4):
        _, expected = stored(eager, "moments", samples(count), flip=True)
        assert len(found[0][count]) == count
        for once, again, one in zip(found[0][count], found[1][count], expected, strict=True):
            for field in one:
                np.testing.assert_array_equal(once[field], again[field])
                np.testing.assert_allclose(once[field], one[field], rtol=2e-3, atol=1e-4)


def test_compile_reaches_what_encode_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: ImageEncoder
) -> None:
    calls = []

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: (calls.append(1), function(*args, **kwargs))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    encoder = open_image_encoder(str(tiny_models.save_kl(tmp_path)))
    encoder.compile()
    assert not calls
    encoder.encode(pixels(1))
    assert calls == [1]
    encoder.encode(pixels(1), torch.bfloat16)  # the copy in another precision is made of a compiled model
    with pytest.raises(UsageError, match="--compile"):
        toy.compile()


def test_what_is_computed_again_is_mirrored_too() -> None:
    encoder = ImageEncoder(Overflowing(stays=False).half(), {}, torch.device("cpu"), torch.float16)
    pixels = np.full((64, 64, 3), 255, np.uint8)
    pixels[:, 32:] = 140
    batches = BatchEncoder(encoder, [], [64], "moments", 0, flip=True)
    (arrays,) = arrays_of(batches, [EncoderInput("a", [""], {64: pixels})])
    assert arrays is not None
    plain, mirrored = arrays["moments_64"][0], arrays["moments_64_flipped"][0]
    assert plain[0, 0] > plain[0, -1] + 0.5
    np.testing.assert_allclose(mirrored, plain[:, ::-1], atol=1e-2)


@pytest.mark.parametrize(("value", "pixel"), [(100.9, 101), (100.1, 100), (-3.0, 0), (258.0, 255)])
def test_decoded_pixels_are_rounded_and_clipped(value: float, pixel: int) -> None:
    class Constant(ToyVAE):
        def decode(self, raw: torch.Tensor) -> Any:
            return SimpleNamespace(sample=torch.full((1, 3, 8, 8), value / 127.5 - 1))

    encoder = ImageEncoder(Constant(), {}, torch.device("cpu"), torch.float32)
    latents = torch.zeros(1, encoder.channels, 1, 1)
    assert encoder.decode(latents).unique().tolist() == [pixel]
