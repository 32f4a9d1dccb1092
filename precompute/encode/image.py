"""Image encoders: pixels -> raw latents -> pixels, one class a family of autoencoders.

Each family has its own idea of what a trainer should see; all of them come down to `latents = (raw - shift) * scale`,
with one number or one per channel. The factor and the number of channels are read off the model by encoding once.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import torch
import torch.nn.functional as F

from precompute.encode.installed import installed
from precompute.encode.models import Location, in_a_line, load_weights, locate_model, weights_hash
from precompute.encode.toy import ToyVAE
from precompute.errors import ModelError, UsageError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PROBE = 128  # pixels: a multiple of every known factor
UNSHIFTED = "?shift=0"  # behind the name of a model whose shift the pipeline leaves out
SHAPES = 1024  # of compiled inputs: more than there are buckets. Beyond the limit torch would compute without compiling

Number = float | tuple[float, ...]
Load = Callable[[torch.dtype], Any]


class ImageEncoder:
    """`AutoencoderKL`: SD 1.5, SDXL, SD3, FLUX; `AutoencoderKLHunyuanImage`. The other families change a method or two.

    factor: pixels per latent cell along an edge. channels: C of the raw latents.
    scale, shift: `latents = (raw - shift) * scale`.
    has_posterior: False where encoding is deterministic and there is no std.
    model: in `dtype` already. load: the same model in another precision; by default a cast copy.
    """

    has_posterior = True
    channels_last = True

    def __init__(
        self,
        model: Any,
        recipe: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        load: Load | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self._load: Load = load or (lambda dtype: copy.deepcopy(self._models[self.dtype]).to(dtype))
        self._models = {dtype: self._place(model)}
        scale, shift = self._scaling(model)
        self.scale, self.shift = scale, shift
        mean, _ = self.encode(torch.zeros(1, 3, PROBE, PROBE, dtype=torch.uint8, device=device))
        self.channels, self.factor = mean.shape[1], PROBE // mean.shape[2]
        self.recipe = {**recipe, "dtype": str(dtype).removeprefix("torch."), "scale": scale, "shift": shift}

    @torch.inference_mode()
    def encode(
        self, pixels_BCHW: torch.Tensor, dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """uint8 (B, 3, H, W) on the device to raw mean and std, each float32 (B, C, H/factor, W/factor).

        dtype: compute in this one rather than in the encoder's own (the way out of a float16 overflow).
        """
        dtype = dtype or self.dtype
        if dtype not in self._models:
            self._models[dtype] = self._place(self._load(dtype))
        pixels = (pixels_BCHW.to(torch.float32) / 127.5 - 1).to(dtype)
        mean, std = self._encode(self._models[dtype], pixels)
        return mean.float(), None if std is None else std.float()

    @torch.inference_mode()
    def decode(self, raw_BCHW: torch.Tensor) -> torch.Tensor:
        """Raw latents (B, C, h, w), unscaled, of any dtype, to uint8 pixels (B, 3, H, W)."""
        sample = self._decode(self._models[self.dtype], raw_BCHW.to(self.device, self.dtype))
        return ((sample.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def compile(self) -> None:
        """`torch.compile` the encoder itself: compiling the whole model would leave `encode` eager.

        For each shape anew, and never for several: which shapes came before must not decide how one is computed.
        """
        model = self._models[self.dtype]
        if not hasattr(model, "encoder"):
            raise UsageError(f"--compile: --vae {self.recipe['model']} has nothing to compile; leave it out")
        torch._dynamo.config.recompile_limit = SHAPES
        torch._dynamo.config.accumulated_recompile_limit = SHAPES
        model.encoder.compile(dynamic=False)

    def leave_unshifted(self) -> None:
        """Let `latents = raw * scale`, as pipelines do that leave the shift in the model's config alone."""
        self.shift = 0.0
        self.recipe = {**self.recipe, "shift": self.shift, "unshifted": True}

    def forget(self, dtype: torch.dtype) -> None:
        """Free what computing in a precision that is not the encoder's own has taken."""
        if dtype != self.dtype:
            self._models.pop(dtype, None)

    def _place(self, model: Any) -> Any:
        model = model.to(self.device).eval().requires_grad_(False)
        if self.channels_last and self.device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        return model

    def _scaling(self, model: Any) -> tuple[Number, Number]:
        config = model.config
        scale = getattr(config, "scaling_factor", None) or 1.0
        if getattr(config, "latents_mean", None) and getattr(config, "latents_std", None):
            return tuple(scale / std for std in config.latents_std), tuple(config.latents_mean)
        return scale, getattr(config, "shift_factor", None) or 0.0

    def _encode(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        posterior = model.encode(pixels).latent_dist
        return posterior.mean, posterior.std

    def _decode(self, model: Any, raw: torch.Tensor) -> torch.Tensor:
        return model.decode(raw).sample


class DCEncoder(ImageEncoder):
    """`AutoencoderDC` of Sana: deterministic, factor 32."""

    has_posterior = False

    def _encode(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        return model.encode(pixels).latent, None


class TinyEncoder(ImageEncoder):
    """`AutoencoderTiny`, TAESD: deterministic, and its latents are scaled as the big model's are."""

    has_posterior = False

    def _encode(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, None]:
        return model.encode(pixels).latents, None


class VideoEncoder(ImageEncoder):
    """`AutoencoderKLQwenImage`, `AutoencoderKLWan`: video models, given one frame."""

    channels_last = False  # their convolutions are three-dimensional

    def _scaling(self, model: Any) -> tuple[Number, Number]:
        return tuple(1 / std for std in model.config.latents_std), tuple(model.config.latents_mean)

    def _encode(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        posterior = model.encode(pixels[:, :, None]).latent_dist
        return posterior.mean[:, :, 0], posterior.std[:, :, 0]

    def _decode(self, model: Any, raw: torch.Tensor) -> torch.Tensor:
        return model.decode(raw[:, :, None]).sample[:, :, 0]


class LTXEncoder(VideoEncoder):
    """`AutoencoderKLLTXVideo`, given one frame: its statistics are buffers, not part of its config."""

    def _scaling(self, model: Any) -> tuple[Number, Number]:
        whole = self._load(torch.float32)  # bfloat16 would round the statistics
        scale = whole.config.scaling_factor / whole.latents_std.double()
        return tuple(scale.tolist()), tuple(whole.latents_mean.double().tolist())


class RGBAEncoder(VideoEncoder):
    """`AutoencoderKLQwenImage21`: a video model of four channels, given one opaque frame."""

    def _encode(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super()._encode(model, torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1))

    def _decode(self, model: Any, raw: torch.Tensor) -> torch.Tensor:
        return super()._decode(model, raw)[:, :3]


class Flux2Encoder(ImageEncoder):
    """`AutoencoderKLFlux2`: 2x2 cells go into one of 4x the channels, normalised by the batch norm's statistics."""

    def _scaling(self, model: Any) -> tuple[Number, Number]:
        whole = self._load(torch.float32)  # bfloat16 would round the statistics
        std = (whole.bn.running_var.double() + whole.config.batch_norm_eps).sqrt()
        return tuple((1 / std).tolist()), tuple(whole.bn.running_mean.double().tolist())

    def _encode(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        mean, std = super()._encode(model, pixels)
        return F.pixel_unshuffle(mean, 2), None if std is None else F.pixel_unshuffle(std, 2)

    def _decode(self, model: Any, raw: torch.Tensor) -> torch.Tensor:
        return super()._decode(model, F.pixel_shuffle(raw, 2))


FAMILIES: dict[str, type[ImageEncoder]] = {
    "AutoencoderKL": ImageEncoder,
    "AutoencoderDC": DCEncoder,
    "AutoencoderTiny": TinyEncoder,
    "AutoencoderKLHunyuanImage": ImageEncoder,
    "AutoencoderKLQwenImage": VideoEncoder,
    "AutoencoderKLQwenImage21": RGBAEncoder,
    "AutoencoderKLWan": VideoEncoder,
    "AutoencoderKLFlux2": Flux2Encoder,
    "AutoencoderKLLTXVideo": LTXEncoder,
}


def open_image_encoder(name: str, device: torch.device | str = "cpu", dtype: str = "float32") -> ImageEncoder:
    """The encoder that `--vae` names: `toy`, a folder, a Hub id with an optional `@REVISION`, or NAME:ID of an installed package.

    A `vae` subfolder, as diffusers pipelines have it, is found by itself. Behind it may stand `?shift=0`: the latents are scaled
    and not shifted, whatever the model's config says. dtype: that of the computation.
    Raises ModelError where there is no such model, or none of a family in `FAMILIES`.
    """
    encoder = _open(name.removesuffix(UNSHIFTED), torch.device(device), dtype)
    if name.endswith(UNSHIFTED):
        encoder.leave_unshifted()
    return encoder


def _open(name: str, device: torch.device, dtype: str) -> ImageEncoder:
    if name == "toy":
        toy = ToyVAE()
        return ImageEncoder(toy, {"model": "toy", "weights": weights_hash(toy)}, device, DTYPES[dtype])
    if theirs := installed("image", name):
        open_theirs, rest = theirs
        encoder: ImageEncoder = open_theirs(rest, device, DTYPES[dtype])
        return encoder
    location = locate_model("--vae", name, ["vae"])
    family = location.config.get("_class_name")
    if family not in FAMILIES:
        raise ModelError(
            f"--vae {name}: it is a {family or 'model of no known class'}, not one of {sorted(FAMILIES)}"
        )
    model, variant = _load(name, family, location, DTYPES[dtype])
    recipe = {"family": family, **location.recipe(model), **({"variant": variant} if variant else {})}

    def load(dtype: torch.dtype) -> Any:
        return _load(name, family, location, dtype)[0]

    return FAMILIES[family](model, recipe, device, DTYPES[dtype], load)


def _load(name: str, family: str, location: Location, dtype: torch.dtype) -> tuple[Any, str | None]:
    load = partial(
        getattr(diffusers, family).from_pretrained, location.name, torch_dtype=dtype, **location.arguments
    )
    try:
        return load_weights(f"--vae {name}", load)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"--vae {name}: cannot load {location.subfolder or 'it'}: {in_a_line(error)}. Fetch it whole, with `hf download`"
        ) from error
