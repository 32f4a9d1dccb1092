"""Image features: pixels -> the patch tokens of a vision model, as REPA and its like align to.

    --features NAME=ID[@REVISION][?layer=-1&size=224&subfolder=S&pooled]

layer: which hidden state, counted as transformers does (-1 the last, as the model gives it). size: edge in pixels of the square
that the crop is resized to, a multiple of the model's patch; default: what its image processor makes. With buckets the crop
keeps its shape, at that area. pooled: the model's pooled vector instead, as one token. The normalisation is that of its image
processor; class and register tokens are left out.
"""

import copy
import inspect
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import torch
import transformers
from transformers.image_processing_base import ImageProcessingMixin

from loader.format import Field
from precompute.encode.image import DTYPES, Load
from precompute.encode.latents import View
from precompute.encode.models import Location, in_a_line, load_weights, locate_model
from precompute.errors import ModelError, UsageError

NAME = re.compile(r"(?!.*_flipped$)[A-Za-z0-9_-]{1,64}")
OPTIONS = ("layer", "size", "subfolder", "pooled")
FAMILIES = {
    "clip": "CLIPVisionModel",
    "clip_vision_model": "CLIPVisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    # Of the NaFlex checkpoints; those of one size are of type siglip.
    "siglip2": "Siglip2VisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
}


@dataclass(frozen=True)
class FeatureSpec:
    """A parsed `--features`. None: the model's own default."""

    name: str
    model: str
    layer: int = -1
    size: int | None = None
    subfolder: str | None = None
    pooled: bool = False


def parse_features(value: str) -> FeatureSpec:
    """Raises UsageError, naming the part that is wrong."""

    def refuse(what: str) -> UsageError:
        return UsageError(f"--features {value}: {what}")

    front, _, query = value.partition("?")
    name, _, model = front.partition("=")
    if not model or not NAME.fullmatch(name):
        raise refuse(
            "write it NAME=ID[?layer=-1&size=224&pooled]; NAME is letters, digits, _ - and ends not in _flipped"
        )
    options = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
    if unknown := options.keys() - set(OPTIONS):
        raise refuse(f"unknown {sorted(unknown)}; there are {', '.join(OPTIONS)}")
    try:
        layer = int(options.get("layer", "-1"))
        size = int(options["size"]) if "size" in options else None
    except ValueError as error:
        raise refuse("layer and size are whole numbers") from error
    if size is not None and not 0 < size <= 4096:
        raise refuse("size is an edge in pixels, up to 4096")
    return FeatureSpec(name, model, layer, size, options.get("subfolder"), "pooled" in options)


def features_value(recipe: dict[str, Any], model: str) -> str:
    """The `--features` of an encoder's part of a recipe, of that model."""
    query = [
        f"layer={recipe['layer']}",
        f"size={recipe['size']}",
        *(["pooled"] if recipe.get("pooled") else []),
    ]
    query += [f"subfolder={recipe['subfolder']}"] if recipe.get("subfolder") else []
    return f"{recipe['name']}={model}?{'&'.join(query)}"


class FeatureEncoder:
    """A vision model with its normalisation.

    size: edge in pixels of the square that it is given. patch: edge of a patch. dim: D of a token.
    model: in `dtype` already. about: its image processor's settings. load: the same model in another precision; by default a
    cast copy. Raises UsageError for a size or a layer that the model does not take.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        model: Any,
        about: dict[str, Any],
        recipe: dict[str, Any],
        device: torch.device,
        dtype: torch.dtype,
        load: Load | None = None,
    ) -> None:
        self.spec, self.device, self.dtype = spec, device, dtype
        self.flag = f"--features {spec.name}"
        self._load: Load = load or (lambda dtype: copy.deepcopy(self._models[self.dtype]).to(dtype))
        self._models = {dtype: self._place(model)}
        takes = inspect.signature(model.forward).parameters
        self._resizes, self._in_patches = "interpolate_pos_encoding" in takes, "spatial_shapes" in takes
        self.patch = int(model.config.patch_size)
        self.size = spec.size or _own_size(about, self.patch)
        if self.size % self.patch:
            near = max(1, round(self.size / self.patch)) * self.patch
            raise UsageError(
                f"--features {spec.name}: size={self.size} is not divisible by {self.patch}, the patch of "
                f"{spec.model}; use {near}"
            )
        mean, std = (about.get(name) or [0.5] * 3 for name in ("image_mean", "image_std"))
        if not about.get("do_normalize", True):
            mean, std = [0.0] * 3, [1.0] * 3
        scale = float(about.get("rescale_factor") or 1 / 255) if about.get("do_rescale", True) else 1.0
        self._mean, self._std = (
            torch.tensor(value, dtype=torch.float32, device=device).view(-1, 1, 1) for value in (mean, std)
        )
        self._scale = scale
        self.dim = self._probe()
        self.recipe = {
            **recipe,
            "name": spec.name,
            "dtype": str(dtype).removeprefix("torch."),
            "layer": spec.layer,
            "size": self.size,
            "pooled": spec.pooled,
            "normalisation": {"scale": scale, "mean": list(mean), "std": list(std)},
        }

    def views(self, flip: bool) -> list[View]:
        """The picture, and the mirrored one."""
        name = f"features_{self.spec.name}"
        return [
            View(name + ("_flipped" if flipped else ""), self.spec.name, flipped, self)
            for flipped in ([False, True] if flip else [False])
        ]

    def field(self, view: View, fixed_size: bool) -> Field:
        """N is None where pictures are of several shapes."""
        tokens = 1 if self.spec.pooled else (self.size // self.patch) ** 2 if fixed_size else None
        return Field(view.name, "features", "float16", (tokens, self.dim))

    def encode(
        self, pixels: torch.Tensor, keys: Sequence[str], view: View, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        return self.tokens(pixels[: len(keys)], dtype).to(torch.float16)

    def size_of(self, width: float, height: float) -> tuple[int, int]:
        """(width, height) in pixels, in whole patches, of what the model is given of a crop of that shape."""
        scale = self.size / math.sqrt(width * height)
        across, down = (max(1, round(edge * scale / self.patch)) * self.patch for edge in (width, height))
        return across, down

    @torch.inference_mode()
    def tokens(self, pixels_BCHW: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """uint8 (B, 3, H, W) on the device to float32 tokens (B, N, D), row by row; (B, 1, D) pooled.

        dtype: compute in this one rather than in the encoder's own (the way out of a float16 overflow).
        """
        dtype = dtype or self.dtype
        if dtype not in self._models:
            self._models[dtype] = self._place(self._load(dtype))
        pixels = ((pixels_BCHW.to(torch.float32) * self._scale - self._mean) / self._std).to(dtype)
        output = self._models[dtype](**self._inputs(pixels), output_hidden_states=self.spec.layer != -1)
        if self.spec.pooled:
            pooled: torch.Tensor = output.pooler_output
            return pooled.float()[:, None]
        states = output.last_hidden_state if self.spec.layer == -1 else output.hidden_states[self.spec.layer]
        patches = (pixels.shape[2] // self.patch) * (pixels.shape[3] // self.patch)
        # Class and register tokens stand before those of the patches.
        return states[:, states.shape[1] - patches :].float()

    def forget(self, dtype: torch.dtype) -> None:
        """Free what computing in a precision that is not the encoder's own has taken."""
        if dtype != self.dtype:
            self._models.pop(dtype, None)

    def _inputs(self, pixels_BCHW: torch.Tensor) -> dict[str, Any]:
        if not self._in_patches:
            resize = {"interpolate_pos_encoding": True} if self._resizes else {}
            return {"pixel_values": pixels_BCHW, **resize}
        # SigLIP2 of any shape: patches, channels innermost. All of a batch have one shape, so that none is padding. The model
        # looks at the shapes on the host.
        batch, channels, height, width = pixels_BCHW.shape
        down, across, patch = height // self.patch, width // self.patch, self.patch
        patches = pixels_BCHW.view(batch, channels, down, patch, across, patch).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": patches.reshape(batch, down * across, -1),
            "pixel_attention_mask": torch.ones(batch, down * across, dtype=torch.int32, device=self.device),
            "spatial_shapes": torch.tensor([[down, across]] * batch),
        }

    def _place(self, model: Any) -> Any:
        return model.to(self.device).eval().requires_grad_(False)

    def _probe(self) -> int:
        """D of a token."""
        blank = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8, device=self.device)
        try:
            return int(self.tokens(blank).shape[-1])
        except IndexError as error:
            layers = getattr(self._models[self.dtype].config, "num_hidden_layers", "fewer")
            raise UsageError(
                f"--features {self.spec.name}: no layer {self.spec.layer} in {self.spec.model}; it has {layers}"
            ) from error
        except AttributeError as error:
            raise ModelError(
                f"--features {self.spec.name}: {self.spec.model} has no pooled vector; leave out pooled"
            ) from error


def open_feature_encoder(
    value: str, device: torch.device | str = "cpu", dtype: str = "float32"
) -> FeatureEncoder:
    """The encoder that one `--features` names: a folder or a Hub id. Raises ModelError or UsageError."""
    spec, torch_dtype = parse_features(value), DTYPES[dtype]
    location = locate_model("--features", spec.model, [spec.subfolder or "image_encoder"])
    kind = location.config.get("model_type", "")
    if kind not in FAMILIES:
        raise ModelError(
            f"--features {spec.name}: {spec.model} is of type {kind!r}, not one of {', '.join(sorted(FAMILIES))}"
        )
    load = partial(_load, spec, location, FAMILIES[kind])
    model = load(torch_dtype)
    return FeatureEncoder(
        spec,
        model,
        _processor(spec, location),
        location.recipe(model),
        torch.device(device),
        torch_dtype,
        load,
    )


def _load(spec: FeatureSpec, location: Location, family: str, dtype: torch.dtype) -> Any:
    load = partial(
        getattr(transformers, family).from_pretrained, location.name, dtype=dtype, **location.arguments
    )
    try:
        return load_weights(f"--features {spec.name}", load)[0]
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"--features {spec.name}: cannot load {spec.model}: {in_a_line(error)}") from error


def _processor(spec: FeatureSpec, location: Location) -> dict[str, Any]:
    """The settings of the model's image processor, beside the model or in the folder that a pipeline keeps it in."""
    folders = [location.subfolder, *(["feature_extractor"] if location.subfolder else [])]
    for folder in folders:
        try:
            about, _ = ImageProcessingMixin.get_image_processor_dict(
                location.name, subfolder=folder, revision=location.revision
            )
            return about
        except (OSError, ValueError):
            continue
    raise ModelError(
        f"--features {spec.name}: {spec.model} has no preprocessor_config.json, which says how its pixels are normalised"
    )


def _own_size(about: dict[str, Any], patch: int) -> int:
    """The edge in pixels that an image processor makes: of its crop, else of its size, else of the square of its patches."""
    if isinstance(most := about.get("max_num_patches"), int):
        return math.isqrt(most) * patch
    for value in (about.get("crop_size") if about.get("do_center_crop") else None, about.get("size")):
        if isinstance(value, int):
            return value
        if isinstance(value, dict):
            for edge in ("height", "shortest_edge"):
                if isinstance(value.get(edge), int):
                    return int(value[edge])
    raise UsageError(
        f"--features: its image processor names no size ({json.dumps(about)[:120]}); give size=224"
    )
