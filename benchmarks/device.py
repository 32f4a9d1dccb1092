"""One device, all of the work: the pipeline against bare encode calls and against the loop of the paper's scripts.

    python benchmarks/device.py                    # a GPU; --images 4096 --batch-size 32 --dtype bfloat16 --num-threads 16
    python benchmarks/device.py --small            # anywhere, in a minute: small models, which only shows that it runs

Random weights of the real architectures: SDXL's autoencoder, and a text model of ViT-H's size (24 layers of 1024). JPEGs in
memory in, shards out, at 256 and 512 pixels.

bare        encode calls on tensors that are on the device already: what the device can do.
ours        decode, encode, write, sha256, sidecar, as precompute/run.py does it.
loop        as SonyResearch/micro_diffusion does it, in our words: a DataLoader with two workers that decodes in full and
            resizes for each resolution, float32 to the device, autocast, one sample of the posterior, wait, write.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.encode import Photographs, photographs, row, run
from precompute.encode.batch_encoder import BatchEncoder
from precompute.encode.devices import pick_device
from precompute.encode.image import DTYPES, ImageEncoder
from precompute.encode.text import TextEncoder
from precompute.encode.text_spec import TextSpec
from precompute.encode.toy import ToyTokenizer
from precompute.input.pixels import read_picture
from precompute.runtime.progress import default_threads

RESOLUTIONS = (256, 512)
SIZE = (1024, 768)  # of the JPEGs
CAPTION = "a photograph of a cat in a cup, beside a window"


def make_vae(small: bool) -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16, 16) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if small else 2,
        norm_num_groups=8 if small else 32,
        scaling_factor=0.13025,
    )


def make_text_model(small: bool) -> Any:
    torch.manual_seed(0)
    width, layers = (64, 2) if small else (1024, 24)
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act="gelu",
        max_position_embeddings=77,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )
    return transformers.CLIPTextModel(config)


def captions(count: int) -> list[str]:
    """All different: a unit's repeated captions would be encoded once."""
    return [f"{CAPTION}, number {index}" for index in range(count)]


class Captioned(Photographs):
    def rows(self, unit: Any) -> Iterator[Any]:
        for record, caption in zip(super().rows(unit), captions(self._per_unit), strict=False):
            yield replace(record, caption=f"{caption} of {unit.index}")


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def bare(image: ImageEncoder, text: TextEncoder, images: int, batch: int) -> float:
    """Images a second."""
    ready = {}
    for resolution in RESOLUTIONS:
        pixels = [read_picture(jpeg, [resolution]).pixels[resolution] for jpeg in photographs(SIZE)]
        stacked = torch.from_numpy(np.stack([pixels[i % len(pixels)] for i in range(batch)]))
        ready[resolution] = stacked.to(image.device).permute(0, 3, 1, 2)
    texts = captions(batch)
    synchronize(image.device)
    started = time.perf_counter()
    for _ in range(images // batch):
        for resolution in RESOLUTIONS:
            image.encode(ready[resolution])
        text.launch(texts)
    synchronize(image.device)
    return images // batch * batch / (time.perf_counter() - started)


class Decoded(torch.utils.data.Dataset[Any]):
    """A dataset as that of the scripts: decoded in full, then resized and normalised for each resolution."""

    def __init__(self, images: int) -> None:
        self._images, self._jpegs, self._tokenizer = images, photographs(SIZE), ToyTokenizer()

    def __len__(self) -> int:
        return self._images

    def __getitem__(self, index: int) -> Any:
        image = Image.open(io.BytesIO(self._jpegs[index % len(self._jpegs)])).convert("RGB")
        caption = f"{CAPTION}, number {index}"
        sizes = [self._fit(image, resolution) for resolution in RESOLUTIONS]
        return *sizes, self._tokenizer([caption]).input_ids[0], caption

    def _fit(self, image: Image.Image, resolution: int) -> torch.Tensor:
        scale = resolution / min(image.size)
        width, height = round(image.width * scale), round(image.height * scale)
        left, top = (width - resolution) // 2, (height - resolution) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.array(resized.crop((left, top, left + resolution, top + resolution)))
        return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).sub(0.5).div(0.5)


@torch.no_grad()
def loop(
    vae: Any, text: Any, images: int, batch: int, device: torch.device, dtype: torch.dtype, out: Path
) -> float:
    """Images a second, workers' start aside."""
    loader = torch.utils.data.DataLoader(
        Decoded(images), batch, num_workers=2, prefetch_factor=2, pin_memory=device.type == "cuda"
    )
    batches = iter(loader)
    started, seen = 0.0, 0
    with open(out / "samples.bin", "wb") as file:
        for small, large, tokens, texts in batches:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                latents = []
                for pixels in (small, large):
                    posterior = vae.encode(pixels.to(device)).latent_dist
                    latents.append((posterior.sample() * vae.config.scaling_factor).to(torch.float16))
                states = text(tokens.to(device)).last_hidden_state.to(torch.float16)
            arrays = [tensor.cpu().numpy() for tensor in (*latents, states)]
            for index, caption in enumerate(texts):
                file.write(caption.encode() + b"".join(array[index].tobytes() for array in arrays))
            if not started:  # the first batch has waited for the workers to start
                started = time.perf_counter()
                continue
            seen += len(texts)
    return seen / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--num-threads", type=int, default=default_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    images, batch = options.images or (96 if options.small else 4096), options.batch_size
    device, dtype = pick_device(), DTYPES["float32" if options.small else options.dtype]
    image = ImageEncoder(make_vae(options.small).to(dtype), {}, device, dtype)
    if options.compile:
        image.compile()
    spec = TextSpec("", "benchmark")
    text = TextEncoder(spec, make_text_model(options.small).to(dtype), ToyTokenizer(), {}, device, dtype)
    encoder = BatchEncoder(
        image, [text], RESOLUTIONS, "moments", 0, fill_to=batch if options.compile else None
    )
    plain = SimpleNamespace(
        vae=make_vae(options.small).to(device, dtype).eval(),
        text=make_text_model(options.small).to(device, dtype).eval(),
    )
    print(f"on {device}, {dtype}, batches of {batch}, {options.num_threads} decode threads")
    with tempfile.TemporaryDirectory() as folder:
        bare(image, text, 2 * batch, batch)
        run(Captioned(2 * batch, batch, SIZE), encoder, list(RESOLUTIONS), batch, options.num_threads)
        loop(plain.vae, plain.text, 3 * batch, batch, device, dtype, Path(folder))
        alone = bare(image, text, images, batch)
        unit = max(batch, images // 4)
        stats = run(Captioned(images, unit, SIZE), encoder, list(RESOLUTIONS), batch, options.num_threads)
        ours = stats.images / stats.seconds
        theirs = loop(plain.vae, plain.text, images, batch, device, dtype, Path(folder))
        again = bare(image, text, images, batch)
    best = max(alone, again)  # before and after: a machine is not always equally quiet
    row("bare encode calls, images/s", f"{best:.1f}", f"{min(alone, again):.1f} in the other run")
    row("ours, images/s", f"{ours:.1f}", f"{ours / best:.1%} of bare")
    row("  device waited", f"{stats.waited:.1%}", f"bottleneck: {stats.bottleneck}")
    row("the scripts' loop, images/s", f"{theirs:.1f}", f"ours is {ours / theirs:.2f}x")


if __name__ == "__main__":
    main()
