"""docs/encoders.md: what each preset stores, and how far it was off its pipeline when the suite was last asked to write it.

LATENTMILL_DOCS=1 bash tests/run.sh tests/precompute/encode/test_{pipelines,autoencoders,openclip}.py
"""

from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from loader.format import Field, text_field_name
from precompute.encode.presets import PRESETS
from precompute.encode.text_spec import TextSpec, parse_text_encoder

AGAIN = (__doc__ or "").splitlines()[-1]
PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
EDGE = 512
# Of the published weights: each repository's config.json, of which most are the defaults of its transformer in diffusers, by which
# test_presets.py holds them. Picture: channels of a latent, and pixels along its cell. Text: a hidden state of each encoder.
WIDTHS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "sd15": ((4, 8), (768,)),
    "sdxl": ((4, 8), (768, 1280)),
    "sd3": ((16, 8), (768, 1280, 4096)),
    "flux1": ((16, 8), (4096, 768)),
    "flux2-dev": ((128, 16), (5120,)),
    "flux2-klein": ((128, 16), (4096,)),
    "qwen-image": ((16, 8), (3584,)),
    "z-image": ((16, 8), (2560,)),
    "sana": ((32, 32), (2304,)),
    "pixart-sigma": ((4, 8), (4096,)),
    "lumina2": ((16, 8), (2304,)),
    "hunyuan-image": ((64, 32), (3584, 1472)),
    "wan": ((16, 8), (4096,)),
    "chroma": ((16, 8), (4096,)),
    "kandinsky5": ((16, 8), (3584, 768)),
    "hidream": ((16, 8), (4096, 4096, 768, 1280)),
    "auraflow": ((4, 8), (2048,)),
    "cogview4": ((16, 8), (4096,)),
    "ltx": ((128, 32), (4096,)),
    "micro-diffusion": ((4, 8), (1024,)),
}
DETERMINISTIC = ("sana",)
# Those that no preset has: the class, the pipeline that takes it, its repository, and what is stored of a picture, by the published
# config.json.
AUTOENCODERS = {
    "taesd": (
        "AutoencoderTiny",
        "StableDiffusionXLImg2ImgPipeline",
        "madebyollin/taesd",
        Field(f"latents_{EDGE}", "latents", "float16", (4, EDGE // 8, EDGE // 8)),
    ),
    "qwen-image-2.1": (
        "AutoencoderKLQwenImage21",
        "QwenImage21Pipeline",
        "Qwen/Qwen-Image-2.1",
        Field(f"moments_{EDGE}", "moments", "float16", (2 * 64, EDGE // 16, EDGE // 16)),
    ),
    "playground-2.5": (
        "AutoencoderKL",
        "StableDiffusionXLImg2ImgPipeline",
        "playgroundai/playground-v2.5-1024px-aesthetic",
        Field(f"moments_{EDGE}", "moments", "float16", (2 * 4, EDGE // 8, EDGE // 8)),
    ),
}
HEAD = f"""# What each `--for` stores

Written by the tests (see CONTRIBUTING, "Add a preset"), which run each preset through `precompute/run.py`, shards and loader, on tiny
random parts in the pipeline's own classes, with seven hard captions and the empty one, and hold it against that pipeline. **Off by**: the
largest difference from it, text / picture, computed in float32 and stored as float16; more than that rounding (a 2048th of what is stored,
for pictures again when they are read) is a failure.

**Stored**: one sample of {EDGE} pixels, one caption, the widths of the published weights; `≤T` tokens where only a caption's own are stored.
**MB**: of these arrays in float16, captions at their longest, text + picture. M is the repository or `--model`, … the model's template.

| `--for` | pipeline | `--text-encoder`, and a `--vae` that is not M | stored | MB a sample | off by |
|---|---|---|---|---|---|
"""

ALONE = """
Autoencoders that no preset has, given by `--vae`, and held against the pipeline that takes them in the same way:

| autoencoder | class | pipeline | stored | MB a picture | off by |
|---|---|---|---|---|---|
"""


def fields(name: Any) -> list[tuple[Field, bool]]:
    """What a preset stores, token axes at their longest, and whether they vary."""
    (channels, cell), widths = WIDTHS[name]
    square = (EDGE // cell, EDGE // cell)
    picture = Field(f"moments_{EDGE}", "moments", "float16", (2 * channels, *square))
    if name in DETERMINISTIC:
        picture = Field(f"latents_{EDGE}", "latents", "float16", (channels, *square))
    found = [(picture, False)]
    for value, width in zip(PRESETS[name].text_encoders, widths, strict=True):
        found += _of_text(parse_text_encoder(value), width)
    return found


def _of_text(spec: TextSpec, width: int) -> list[tuple[Field, bool]]:
    found = []
    if spec.states:
        shape = (spec.length or 77, width * len(spec.layers))
        whole = spec.length is None or (spec.padding not in (None, "trim") and not spec.mask)
        name = text_field_name("latents", spec.name)
        found.append((Field(name, "caption_latents", "float16", shape), not whole or bool(spec.multiple)))
    if spec.pooled:
        name = text_field_name("pooled", spec.name)
        found.append((Field(name, "caption_pooled", "float16", (width,)), False))
    return found


def row(name: Any) -> str:
    """All of a preset's line but what is measured."""
    preset, stored = PRESETS[name], fields(name)
    link = f"[{preset.pipeline or 'the paper, by OpenCLIP'}](https://huggingface.co/{preset.model})"
    shown = [
        f"`{field.name}` ({'≤' if varies else ''}{', '.join(map(str, field.shape))})"
        for field, varies in stored
    ]
    picture, *text = (2 * prod(n or 0 for n in field.shape) / 1e6 for field, _ in stored)
    said = [_short(value, preset.elsewhere) for value in preset.text_encoders]
    said += [f"--vae {_short(preset.vae, '')}"] if preset.vae != "{}" else []
    values = "<br>".join(f"`{value}`" for value in said)
    return f"| `{name}` | {link} | {values} | {'<br>'.join(shown)} | {sum(text):.2f} + {picture:.2f} |"


def _short(value: str, elsewhere: str) -> str:
    front, _, query = value.replace("{elsewhere}", elsewhere).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if "template" in options:
        options["template"] = "…"
    layers = options.get("layer", "").split(",")
    if len(layers) > 4:
        options["layer"] = f"{layers[0]},…,{layers[-1]}"
    query = "&".join(f"{key}={said}" if said else key for key, said in options.items())
    return front.replace("{}", "M") + (f"?{query}" if query else "")


def row_alone(name: str) -> str:
    """All of the line of an autoencoder without a preset but what is measured."""
    family, pipeline, model, field = AUTOENCODERS[name]
    shown = f"`{field.name}` ({', '.join(map(str, field.shape))})"
    link = f"[{model}](https://huggingface.co/{model})"
    size = 2 * prod(n or 0 for n in field.shape) / 1e6
    return f"| `{name}`: {link} | `{family}` | {pipeline} | {shown} | {size:.2f} |"


def measured(page: str) -> dict[str, str]:
    """The last column by preset, or by autoencoder."""
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    cells = {first.split("`")[1]: last.removesuffix(" |") for first, *_, last in lines}
    return {name: cell for name, cell in cells.items() if name in (*PRESETS, *AUTOENCODERS)}


def render(differences: dict[str, str]) -> str:
    """The page, with what was measured by preset and by autoencoder."""
    presets = "".join(f"{row(name)} {differences.get(name, '')} |\n" for name in PRESETS)
    alone = "".join(f"{row_alone(name)} {differences.get(name, '')} |\n" for name in AUTOENCODERS)
    return HEAD + presets + ALONE + alone


def write(name: str, difference: str) -> None:
    """The committed page again, with this line's difference; those of the others stay."""
    before = measured(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    PAGE.write_text(render(before | {name: difference}), encoding="utf-8")
