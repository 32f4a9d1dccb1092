"""The toy models, `--vae toy --text-encoder toy`: no download, and a fault shows as a number.

The toy VAE has no weights. Its latents are 8x8 block averages, so that a wrong crop, channel order, flip or scale is
visible to the eye in the decoded picture and to PSNR in decibels.
"""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModel

BLOCK = 8
LUMINANCE = (0.299, 0.587, 0.114)


class ToyVAE(torch.nn.Module):
    """Stands in for `diffusers.AutoencoderKL`: 4 channels, factor 8, scale and shift that are not 1 and 0.

    Channels 0 to 2 are the mean red, green and blue of a block, in [-1, 1]; channel 3 is its luminance gradient, the
    right half's mean less the left half's.
    """

    luminance: torch.Tensor
    ramp: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(
            scaling_factor=2.0, shift_factor=0.25, latents_mean=None, latents_std=None, latent_channels=4
        )
        self.register_buffer("luminance", torch.tensor(LUMINANCE).view(1, 3, 1, 1))
        ramp = (torch.arange(BLOCK) + 0.5) / (BLOCK / 2) - 1
        self.register_buffer("ramp", ramp.repeat(BLOCK, 1).view(1, 1, BLOCK, BLOCK))

    def encode(self, pixels_BCHW: torch.Tensor) -> SimpleNamespace:
        """(B, 3, H, W) in [-1, 1] to a posterior over (B, 4, H/8, W/8), of small constant std."""
        mean = torch.cat([F.avg_pool2d(pixels_BCHW, BLOCK), self._gradient(pixels_BCHW)], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean, std=torch.full_like(mean, 0.02)))

    def decode(self, latents_BCHW: torch.Tensor) -> SimpleNamespace:
        """Raw latents back to (B, 3, H, W): colours between blocks interpolated, gradients within them restored."""
        pixels = F.interpolate(latents_BCHW[:, :3], scale_factor=BLOCK, mode="bilinear", align_corners=False)
        missing = latents_BCHW[:, 3:] - self._gradient(pixels)
        ramp = self.ramp.repeat(1, 1, *latents_BCHW.shape[-2:])
        return SimpleNamespace(sample=pixels + ramp * F.interpolate(missing, scale_factor=BLOCK))

    def _gradient(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        halves = F.avg_pool2d((pixels_BCHW * self.luminance).sum(1, keepdim=True), (BLOCK, BLOCK // 2))
        return halves[..., 1::2] - halves[..., 0::2]


class ToyTokenizer:
    """UTF-8 bytes as token ids, between a start (256) and an end (257) token, padded (258) to `max_length`."""

    model_max_length = 77

    def __call__(
        self, captions: list[str], max_length: int = model_max_length, **_: object
    ) -> SimpleNamespace:
        rows = []
        for caption in captions:
            ids = [256, *caption.encode()[: max_length - 2], 257]
            rows.append(ids + [258] * (max_length - len(ids)))
        return SimpleNamespace(input_ids=torch.tensor(rows, dtype=torch.long))


def toy_text_model() -> CLIPTextModel:
    """A CLIP text model, two layers of width 64, whose weights are the same everywhere, for ever."""
    config = CLIPTextConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    model = CLIPTextModel(config)
    random = np.random.RandomState(0)  # the one generator whose stream numpy has frozen for good
    for name, parameter in sorted(model.named_parameters()):
        if "norm" not in name:
            parameter.data = torch.from_numpy(random.uniform(-0.15, 0.15, tuple(parameter.shape))).float()
    return model
